"""The form for TensorRT 10.3 to 10.14: a static KV cache that the runtime updates, in plain operators.

| tensor | shape | dtype |
|---|---|---|
| inputs_embeds (in) | [B, S, C] | the bundle's precision |
| position_ids (in) | [B, S] | int64 |
| past_lengths (in) | [B], or [L] where layers differ and B is 1 | int64, P: rows of the cache that are filled |
| past_key_values.{i}.key / .value (in) | [B, kv heads, M, D] | the bundle's precision |
| logits (out) | [B, 1, V] | float32, after the last token |
| present.{i}.key / .value (out) | [B, kv heads, S, D] | the bundle's precision |

The graph reads the cache and gives back the S new rows, which a runtime puts at row P: a cache that went through the graph
would be copied whole for each token. Letters as in `static.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fico_export.models.decoders.base import DecoderAttention, causal_mask
from fico_export.models.decoders.static import Rows, StaticDecoder, by_group, by_head, for_groups, static_form
from fico_export.models.layers import join_heads, split_heads


class ExternalAttention(DecoderAttention):
    """Attention to the cache and to the new rows in two parts, which one softmax joins."""

    def forward(  # type: ignore[override]  # another graph on the same weights
        self, x: Tensor, past: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, rows: Rows
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """[B, S, C] → [B, S, C], the new keys and values [B, kv heads, S, D], queries [B, heads, S, D]."""
        queries, keys = self.rotated(x, cos, sin)
        values = split_heads(self.v_proj(x), self.kv_heads)
        scaled = by_group(queries, self.kv_heads) * queries.shape[-1] ** -0.5
        # Joined along the scores alone: what has D channels is not copied.
        scores = torch.cat([scaled @ past[0].transpose(-1, -2), scaled @ keys.transpose(-1, -2)], dim=-1)
        weights = torch.where(rows.allowed, scores.to(torch.float32), -1e9).softmax(-1).to(x.dtype)
        slots = past[0].shape[2]
        attended = weights[..., :slots] @ past[1] + weights[..., slots:] @ values
        return self.o_proj(join_heads(by_head(attended, self.heads))), (keys, values), queries


class ExternalDecoder(StaticDecoder):
    """Hands back the S new rows of each layer."""

    @classmethod
    def attention_for(cls, dtype: torch.dtype) -> type[DecoderAttention]:
        """The same in every precision."""
        return ExternalAttention

    def allowed(self, start: Tensor, slots: int, new: Tensor) -> Tensor:
        """[G·S, M + S]: what is filled of the cache, and of the new rows those before."""
        filled = (torch.arange(slots, device=start.device) < start).expand(new.shape[1], -1)
        allowed = torch.cat([filled, causal_mask(new.shape[1], new)], dim=1)
        return for_groups(allowed, self.config)

    def present_rows(self) -> int | str:
        """S."""
        return "sequence_length"


FORM = static_form(ExternalDecoder, apart=True)
