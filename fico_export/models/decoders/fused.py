"""The decoder in ONNX Runtime's own operators, for the `ort` target: the same weights, faster on a CPU.

| tensor | shape | dtype |
|---|---|---|
| inputs_embeds (in) | [B, S, C] | the bundle's precision |
| attention_mask (in) | [B, P + S] | int64, 1 where a token is; padding only after the last token |
| position_ids (in) | [B, S] | int64, below the context |
| past_key_values.{i}.key / .value (in) | [B, kv heads, M, D] | the bundle's precision; P of the M rows are filled |
| logits (out) | [B, 1, V] | float32, after the last token |
| present.{i}.key / .value (out) | [B, kv heads, M, D] | the bundle's precision; P + S of the M rows are filled |

Past and present are one buffer of M ≥ P + S rows, bound as input and as output: only the S new rows are written, and no
token costs a copy of the cache. Letters as in `base.py`.

Source: GroupQueryAttention, RotaryEmbedding and SkipSimplifiedLayerNormalization in ONNX Runtime's docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fico_export.models.decoders.base import (
    DecoderAttention,
    DecoderConfig,
    DecoderForm,
    DecoderLayer,
    with_plane,
)
from fico_export.models.decoders.plain import PlainDecoder
from fico_export.models.layers import RmsNorm
from fico_export.models.operators import rms_norm
from fico_export.models.ports import Port


class _Rows(NamedTuple):
    """Where the S new rows stand.

    `last` [B] int32 is the index of the last token, `total` [] int32 counts all, `positions` [B, S] looks up `cos` and `sin`
    [context, D/2].
    """

    last: Tensor
    total: Tensor
    positions: Tensor
    cos: Tensor
    sin: Tensor


class FusedNorm(RmsNorm):
    """Adds what the layer before it computed to the residual stream, and norms the sum."""

    def forward(self, x: Tensor, update: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[B, S, C] each → the sum, and the sum normed."""
        weight = self.weight.to(x.dtype)
        if update is None:
            return x, rms_norm(x, weight, self.eps)
        statistics = (*x.shape[:-1], 1)
        normed, _, _, total = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::SkipSimplifiedLayerNormalization",
            (x, update, weight),
            {"epsilon": self.eps},
            dtypes=(x.dtype, torch.float32, torch.float32, x.dtype),
            shapes=(x.shape, statistics, statistics, x.shape),
            version=1,
        )
        return total, normed


class FusedAttention(DecoderAttention):
    """Cache and causal attention in one operator.

    It has a rotary embedding too, which on CPU takes the positions of a first prompt to follow each other; those of an image's
    kept tokens do not.
    """

    def forward(  # type: ignore[override]  # another graph on the same weights
        self, x: Tensor, past: tuple[Tensor, Tensor], rows: _Rows
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[B, S, C] → [B, S, C], and the buffers [B, kv heads, M, D] with the new keys and values in them."""
        queries, keys = rotate(self.queries(x), rows), rotate(self.keys(x), rows)
        values = self.v_proj(x)
        attended, key, value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (queries, keys, values, *past, rows.last, rows.total),
            {"num_heads": self.heads, "kv_num_heads": self.kv_heads},
            dtypes=(x.dtype, x.dtype, x.dtype),
            shapes=(queries.shape, past[0].shape, past[1].shape),
            version=1,
        )
        return self.o_proj(attended), (key, value)

    def queries(self, x: Tensor) -> Tensor:
        """[B, S, C] → heads side by side, [B, S, heads·D]."""
        queries: Tensor = self.q_proj(x)
        return by_head(queries, self.q_norm) if self.qk_norm else queries

    def keys(self, x: Tensor) -> Tensor:
        """Likewise, [B, S, kv heads·D]."""
        keys: Tensor = self.k_proj(x)
        return by_head(keys, self.k_norm) if self.qk_norm else keys


class FusedLayer(DecoderLayer):
    """A pre-norm transformer layer whose residual sums are part of the norms that follow them."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__(config, dtype)
        self.input_layernorm = FusedNorm(config.hidden_size, config.norm_eps)
        self.self_attn = FusedAttention(config, dtype)
        self.post_attention_layernorm = FusedNorm(config.hidden_size, config.norm_eps)

    def forward(  # type: ignore[override]  # another graph on the same weights
        self, x: Tensor, update: Tensor | None, past: tuple[Tensor, Tensor], rows: _Rows
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Residual stream [B, S, C] and what is still to be added to it → the same after this layer, and its buffers."""
        x, normed = self.input_layernorm(x, update)
        attended, present = self.self_attn(normed, past, rows)
        x, normed = self.post_attention_layernorm(x, attended)
        return x, self.mlp(normed), present


class FusedDecoder(PlainDecoder):
    """The decoder graph of the `ort` target.

    Past and present have one free axis, by which a runtime knows that they are one buffer.
    """

    past_axis = present_axis = "max_sequence_length"

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__(config, dtype)
        self.language_model.layers = nn.ModuleList(FusedLayer(config, dtype) for _ in range(config.layers))
        self.language_model.norm = FusedNorm(config.hidden_size, config.norm_eps)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: Sequence[Tensor],
        planes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits [B, 1, V], then key and value buffer of each layer; `past` holds key, value, key, value and so on."""
        last = attention_mask.sum(1).to(torch.int32) - 1
        total = torch.full((), attention_mask.shape[1], dtype=torch.int32, device=attention_mask.device)
        rows = _Rows(last, total, *self.turns(position_ids, inputs_embeds.dtype))
        x, update, present = inputs_embeds, None, []
        for i, layer in enumerate(self.language_model.layers):
            x, update, cache = layer(x, update, (past[2 * i], past[2 * i + 1]), rows)
            update = with_plane(update, planes, i)
            present += cache
        assert update is not None
        _, normed = self.language_model.norm(x[:, -1:], update[:, -1:])
        return self.lm_head(normed).to(torch.float32), *present

    def logits_port(self, batch: str) -> Port:
        """Logits after the last token."""
        return Port("logits", (batch, 1, self.config.vocab_size), torch.float32)

    def turns(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [B, S] of tables of cosines and sines [rows, D/2].

        With one axis the tables are of every position; with several they are of the tokens of this run, one after the other.
        """
        if not self.config.rope_axes:
            return position_ids, *self.rotary_tables(dtype)
        angles, scale = self.angles(position_ids).flatten(0, 1), self.config.rope_scale
        batch, new = position_ids.shape[1:]
        place = torch.arange(batch * new, device=position_ids.device).view(batch, new)
        return place, (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)

    def rotary_tables(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [context, D/2] of every position, as constants of the graph."""
        positions = np.arange(self.config.context, dtype=np.float32)
        angles = np.outer(positions, np.asarray(self.config.inv_freq, np.float32))
        scale = np.float32(self.config.rope_scale)
        return tuple(torch.tensor(table * scale, dtype=dtype) for table in (np.cos(angles), np.sin(angles)))  # type: ignore[return-value]


def by_head(x: Tensor, norm: RmsNorm) -> Tensor:
    """[B, S, H·D] with each head normed."""
    return norm(x.unflatten(-1, (-1, norm.weight.shape[0]))).flatten(-2)


def rotate(x: Tensor, rows: _Rows) -> Tensor:
    """Rotary position embedding of heads side by side: [B, S, H·D] → the same."""
    rotated: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::RotaryEmbedding",
        (x, rows.positions, rows.cos, rows.sin),
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )
    return rotated


# The fused operators have one number of rows for all layers.
FORM = DecoderForm(
    lambda config, dtype, rows, per_layer, batch: FusedDecoder(config, dtype),
    in_place=True,
    last_row_only=True,
    per_layer="plain",
)
