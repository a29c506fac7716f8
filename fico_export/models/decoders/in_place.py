"""The form for TensorRT from 10.15 and TensorRT-RTX: a static KV cache that the graph updates, in operators of opset 24.

| tensor | shape | dtype |
|---|---|---|
| inputs_embeds (in) | [B, S, C] | the bundle's precision |
| position_ids (in) | [B, S] | int64 |
| past_lengths (in) | [B], or [L] where layers differ and B is 1 | int64, P: rows of the cache that are filled |
| past_key_values.{i}.key / .value (in) | [B, kv heads, M, D] | the bundle's precision |
| logits (out) | [B, 1, V] | float32, after the last token |
| present.{i}.key / .value (out) | [B, kv heads, M, D] | the bundle's precision |

The graph writes the S new rows at row P itself: a runtime binds one buffer as past and as present. Letters as in `static.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fico_export.models import layers, operators
from fico_export.models.decoders.base import DecoderAttention
from fico_export.models.decoders.static import Rows, StaticDecoder, by_group, by_head, for_groups, static_form
from fico_export.models.layers import RmsNorm, join_heads, split_heads


class InPlaceAttention(DecoderAttention):
    """The new rows go into the cache, and attention is one operator over all of its rows."""

    def forward(  # type: ignore[override]  # another graph on the same weights
        self, x: Tensor, past: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, rows: Rows
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """[B, S, C] → [B, S, C], the cache [B, kv heads, M, D] with the new rows, queries [B, heads, S, D]."""
        queries, keys = self.rotated(x, cos, sin)
        keys = operators.scatter(past[0], keys, rows.start)
        values = operators.scatter(past[1], split_heads(self.v_proj(x), self.kv_heads), rows.start)
        attended = self.attend(queries, keys, values, rows.allowed)
        return self.o_proj(join_heads(attended)), (keys, values), queries

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As of any decoder; cos and sin are [B, S, D/2]."""
        queries, keys = self.queries(x), self.keys(x)
        return operators.rotate(queries, cos, sin), operators.rotate(keys, cos, sin)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """[B, heads, S, D]; `allowed` [S, M], or [B, 1, S, M]."""
        allowed = allowed if allowed.ndim == 4 else allowed[None, None]
        return operators.attend(queries, keys, values, allowed)


class InPlaceAttentionInFp32(InPlaceAttention):
    """The same with plain attention: TensorRT has no kernel of the operator for FP32."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """[B, heads, S, D]; `allowed` [G·S, M], or [B, 1, G·S, M]."""
        attended = layers.attend(by_group(queries, self.kv_heads), keys, values, allowed)
        return by_head(attended, self.heads)


class OperatorNorm(RmsNorm):
    """The norm as one operator."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., C]."""
        return operators.rms_norm(x, self.weight.to(x.dtype), self.eps)


class InPlaceDecoder(StaticDecoder):
    """Hands back the cache with the S new rows in it."""

    norm = OperatorNorm

    @classmethod
    def attention_for(cls, dtype: torch.dtype) -> type[DecoderAttention]:
        """The operator, and plain attention in FP32."""
        return InPlaceAttentionInFp32 if dtype == torch.float32 else InPlaceAttention

    def allowed(self, start: Tensor, slots: int, new: Tensor) -> Tensor:
        """[S, M], or [G·S, M] for plain attention: slot j for row r where j ≤ P + r."""
        row = start + torch.arange(new.shape[1], device=start.device)
        allowed = torch.arange(slots, device=start.device) <= row[:, None]
        by_group = isinstance(self.language_model.layers[0].self_attn, InPlaceAttentionInFp32)
        return for_groups(allowed, self.config) if by_group else allowed

    def rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, S, D/2], computed in FP32."""
        cos, sin = super().rotary(position_ids, dtype)
        half = self.config.head_dim // 2
        return cos[:, 0, :, :half], sin[:, 0, :, :half]

    def present_rows(self) -> int | str:
        """M."""
        return self.rows


FORM = static_form(InPlaceDecoder)
