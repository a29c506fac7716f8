"""Decoders for TensorRT, whose KV cache has a fixed number of rows: the dialects `legacy` and `modern`, on the same weights.

| tensor | shape | dtype |
|---|---|---|
| inputs_embeds (in) | [1, S, C] | the bundle's precision |
| position_ids (in) | [1, S] | int64 |
| past_lengths (in) | [1], or [L] where layers differ | int64, P: rows of the cache that are filled |
| past_key_values.{i}.key / .value (in) | [1, kv heads, M, D] | the bundle's precision |
| logits (out) | [1, 1, V] | float32, after the last token |
| present.{i}.key / .value (out) | legacy [1, kv heads, S, D], modern [1, kv heads, M, D] | the bundle's precision |

`legacy` is for the parsers that know plain operators alone. It reads the cache and gives back the S new rows, which a runtime
puts at row P: a cache that went through the graph would be copied whole for each token. `modern` writes them itself: a
runtime binds one buffer as past and as present. Rows from P on are never attended to, but must be finite numbers.
Letters as in `decoder.py`; M rows of the cache, L layers, G query heads for each key-value head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fico_export.models.parts import layers, operators
from fico_export.models.parts.decoder import Decoder, DecoderAttention, DecoderConfig, causal_mask
from fico_export.models.parts.layers import RmsNorm, join_heads, split_heads


class _Rows(NamedTuple):
    """Where the S new rows stand: from row `start` [1] int64 on; `allowed` bool says which keys each query sees."""

    start: Tensor
    allowed: Tensor


class LegacyAttention(DecoderAttention):
    """Attention to the cache and to the new rows in two parts, which one softmax joins."""

    def forward(  # type: ignore[override]  # another graph on the same weights
        self, x: Tensor, past: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, rows: _Rows
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """[1, S, C] → [1, S, C], the new keys and values [1, kv heads, S, D], queries [1, heads, S, D]."""
        queries, keys = self.rotated(x, cos, sin)
        values = split_heads(self.v_proj(x), self.kv_heads)
        scaled = _by_group(queries, self.kv_heads) * queries.shape[-1] ** -0.5
        # Joined along the scores alone: what has D channels is not copied.
        scores = torch.cat([scaled @ past[0].transpose(-1, -2), scaled @ keys.transpose(-1, -2)], dim=-1)
        weights = torch.where(rows.allowed, scores.to(torch.float32), -1e9).softmax(-1).to(x.dtype)
        slots = past[0].shape[2]
        attended = weights[..., :slots] @ past[1] + weights[..., slots:] @ values
        return self.o_proj(join_heads(_by_head(attended, self.heads))), (keys, values), queries


class ModernAttention(DecoderAttention):
    """The new rows go into the cache, and attention is one operator over all of its rows."""

    def forward(  # type: ignore[override]  # another graph on the same weights
        self, x: Tensor, past: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, rows: _Rows
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """[1, S, C] → [1, S, C], the cache [1, kv heads, M, D] with the new rows, queries [1, heads, S, D]."""
        queries, keys = self.rotated(x, cos, sin)
        keys = operators.scatter(past[0], keys, rows.start)
        values = operators.scatter(past[1], split_heads(self.v_proj(x), self.kv_heads), rows.start)
        attended = self.attend(queries, keys, values, rows.allowed)
        return self.o_proj(join_heads(attended)), (keys, values), queries

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """As of any decoder; cos and sin are [1, S, D/2]."""
        queries, keys = split_heads(self.q_proj(x), self.heads), split_heads(self.k_proj(x), self.kv_heads)
        return operators.rotate(queries, cos, sin), operators.rotate(keys, cos, sin)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """[1, heads, S, D]; `allowed` [S, M]."""
        return operators.attend(queries, keys, values, allowed[None, None])


class ModernAttentionInFp32(ModernAttention):
    """The same with plain attention: TensorRT has no kernel of the operator for FP32."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """[1, heads, S, D]; `allowed` [G·S, M]."""
        attended = layers.attend(_by_group(queries, self.kv_heads), keys, values, allowed)
        return _by_head(attended, self.heads)


class ModernNorm(RmsNorm):
    """The norm as one operator."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., C]."""
        return operators.rms_norm(x, self.weight.to(x.dtype), self.eps)


class StaticDecoder(Decoder):
    """The decoder graph of either dialect: prefill in pieces and decode alike."""

    attention: ClassVar[type[DecoderAttention]]
    norm: ClassVar[type[RmsNorm]] = RmsNorm

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, attention: type[DecoderAttention] | None = None
    ) -> None:
        super().__init__(config, dtype)
        stack = self.language_model
        stack.norm = self.norm(config.hidden_size, config.norm_eps)
        for layer in stack.layers:
            layer.input_layernorm = self.norm(config.hidden_size, config.norm_eps)
            layer.post_attention_layernorm = self.norm(config.hidden_size, config.norm_eps)
            layer.self_attn = (attention or self.attention)(config, dtype)

    def forward(  # type: ignore[override]  # another graph on the same weights
        self, inputs_embeds: Tensor, position_ids: Tensor, past_lengths: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Logits [1, 1, V], then key and value of each layer; `past` holds key, value, key, value and so on."""
        cos, sin = self.rotary(position_ids, inputs_embeds.dtype)
        slots, new = past[0].shape[2], inputs_embeds
        rows = [_Rows(start, self.allowed(start, slots, new)) for start in past_lengths.split(1)]
        hidden, present = inputs_embeds, []
        for i, layer in enumerate(self.language_model.layers):
            where = rows[i if len(rows) > 1 else 0]
            hidden, cache = layer(hidden, (past[2 * i], past[2 * i + 1]), cos, sin, where)
            present += cache
        return self.logits(hidden[:, -1:]), *present

    def allowed(self, start: Tensor, slots: int, new: Tensor) -> Tensor:
        """Bool: which keys the S rows of `new` may see after `start` [1] rows of a cache of M `slots`."""
        raise NotImplementedError


class LegacyDecoder(StaticDecoder):
    """The graph of the dialect `legacy`."""

    attention = LegacyAttention

    def allowed(self, start: Tensor, slots: int, new: Tensor) -> Tensor:
        """[G·S, M + S]: what is filled of the cache, and of the new rows those before."""
        filled = (torch.arange(slots, device=start.device) < start).expand(new.shape[1], -1)
        allowed = torch.cat([filled, causal_mask(new.shape[1], new)], dim=1)
        return _for_groups(allowed, self.config)


class ModernDecoder(StaticDecoder):
    """The graph of the dialect `modern`.

    Args:
        config: of the decoder.
        dtype: of weights and arithmetic.
        attention: by default the operator, and plain attention in FP32.
    """

    attention = ModernAttention
    norm = ModernNorm

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, attention: type[DecoderAttention] | None = None
    ) -> None:
        plain = ModernAttentionInFp32 if dtype == torch.float32 else ModernAttention
        super().__init__(config, dtype, attention or plain)
        self._by_group = issubclass(attention or plain, ModernAttentionInFp32)

    def allowed(self, start: Tensor, slots: int, new: Tensor) -> Tensor:
        """[S, M], or [G·S, M] for plain attention: slot j for row r where j ≤ P + r."""
        row = start + torch.arange(new.shape[1], device=start.device)
        allowed = torch.arange(slots, device=start.device) <= row[:, None]
        return _for_groups(allowed, self.config) if self._by_group else allowed

    def rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, S, D/2], computed in FP32."""
        cos, sin = super().rotary(position_ids, dtype)
        half = self.config.head_dim // 2
        return cos[:, 0, :, :half], sin[:, 0, :, :half]


DIALECTS: dict[str, type[StaticDecoder]] = {"legacy": LegacyDecoder, "modern": ModernDecoder}


def _by_group(queries: Tensor, kv_heads: int) -> Tensor:
    """[1, heads, S, D] → [1, kv heads, G·S, D]: a head of the cache is read once for all that share it, and not repeated."""
    return queries.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def _by_head(attended: Tensor, heads: int) -> Tensor:
    """[1, kv heads, G·S, D] → [1, heads, S, D]."""
    kv_heads = attended.shape[1]
    return attended.unflatten(2, (heads // kv_heads, -1)).flatten(1, 2)


def _for_groups(allowed: Tensor, config: DecoderConfig) -> Tensor:
    """[S, T] → [G·S, T], the same for each head of a group."""
    return allowed.repeat(config.heads // config.kv_heads, 1)
