"""What the two forms with a static KV cache have alike: a fixed number of rows, of which the first are filled, and a fixed batch.

Rows from P on are never attended to, but must be finite numbers. Letters as in `base.py`; M rows of the cache, L layers,
G query heads for each key-value head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fico_export.models.decoders.base import Decoder, DecoderAttention, DecoderConfig, DecoderForm, with_plane
from fico_export.models.layers import RmsNorm
from fico_export.models.ports import Inputs, Port, Ports


class Rows(NamedTuple):
    """Where the S new rows stand: from row `start` [B] int64 on; `allowed` bool says which keys each query sees."""

    start: Tensor
    allowed: Tensor


class StaticDecoder(Decoder):
    """Prefill in pieces and decode alike, on a cache of fixed rows.

    Args:
        config: of the decoder.
        dtype: of weights and arithmetic.
        rows: M, of the cache.
        per_layer: whether each layer has a length of its own.
        attention: module of a layer's attention; the form's own by default.
        batch: B; 1 where each layer has a length of its own.
    """

    norm: ClassVar[type[RmsNorm]] = RmsNorm

    def __init__(
        self,
        config: DecoderConfig,
        dtype: torch.dtype,
        rows: int,
        per_layer: bool = False,
        attention: type[DecoderAttention] | None = None,
        batch: int = 1,
    ) -> None:
        super().__init__(config, dtype)
        self.rows, self.per_layer, self.batch = rows, per_layer, batch
        stack = self.language_model
        stack.norm = self.norm(config.hidden_size, config.norm_eps)
        for layer in stack.layers:
            layer.input_layernorm = self.norm(config.hidden_size, config.norm_eps)
            layer.post_attention_layernorm = self.norm(config.hidden_size, config.norm_eps)
            layer.self_attn = (attention or self.attention_for(dtype))(config, dtype)

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        past_lengths: Tensor,
        past: Sequence[Tensor],
        planes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits [B, 1, V], then key and value of each layer; `past` holds key, value, key, value and so on."""
        cos, sin = self.rotary(position_ids, inputs_embeds.dtype)
        slots, new = past[0].shape[2], inputs_embeds
        rows = [Rows(start, self.allowed(start, slots, new)) for start in past_lengths.split(1)]
        if self.batch > 1:  # one of each sequence, where else there is one of each layer
            rows = [Rows(past_lengths, torch.stack([each.allowed for each in rows])[:, None])]
        hidden, present = inputs_embeds, []
        for i, layer in enumerate(self.language_model.layers):
            where = rows[i if len(rows) > 1 else 0]
            hidden, cache = layer(hidden, (past[2 * i], past[2 * i + 1]), cos, sin, where)
            hidden = with_plane(hidden, planes, i)
            present += cache
        return self.logits(hidden[:, -1:]), *present

    @classmethod
    def attention_for(cls, dtype: torch.dtype) -> type[DecoderAttention]:
        """The form's own attention."""
        raise NotImplementedError

    def allowed(self, start: Tensor, slots: int, new: Tensor) -> Tensor:
        """Bool: which keys the S rows of `new` may see after `start` [1] rows of a cache of M `slots`."""
        raise NotImplementedError

    def ports(self) -> Ports:
        """As in the table of each form."""
        batch = self.batch
        lengths = self.config.layers if self.per_layer else batch
        inputs: Inputs = (
            Port("inputs_embeds", (batch, "sequence_length", self.config.hidden_size), self.dtype),
            self.positions_port(batch),
            Port("past_lengths", (lengths,)),
            self.caches("past_key_values", batch, lambda layer: self.rows),
            *self.planes_port(batch),
        )
        present = self.caches("present", batch, lambda layer: self.present_rows())
        return Ports(inputs, (Port("logits", (batch, 1, self.config.vocab_size), torch.float32), *present))

    def present_rows(self) -> int | str:
        """Rows of what a step gives back for each layer."""
        raise NotImplementedError


def static_form(kind: type[StaticDecoder], *, apart: bool = False) -> DecoderForm:
    """The record of a form; `apart` as there."""

    def module(
        config: DecoderConfig, dtype: torch.dtype, rows: int | None, per_layer: bool, batch: int
    ) -> StaticDecoder:
        assert rows is not None
        return kind(config, dtype, rows, per_layer, batch=batch)

    return DecoderForm(module, in_place=True, last_row_only=True, apart=apart)


def by_group(queries: Tensor, kv_heads: int) -> Tensor:
    """[B, heads, S, D] → [B, kv heads, G·S, D]: a head of the cache is read once for all that share it, and not repeated."""
    return queries.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def by_head(attended: Tensor, heads: int) -> Tensor:
    """[B, kv heads, G·S, D] → [B, heads, S, D]."""
    kv_heads = attended.shape[1]
    return attended.unflatten(2, (heads // kv_heads, -1)).flatten(1, 2)


def for_groups(allowed: Tensor, config: DecoderConfig) -> Tensor:
    """[S, T] → [G·S, T], the same for each head of a group."""
    return allowed.repeat(config.heads // config.kv_heads, 1)
