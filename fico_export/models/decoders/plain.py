"""The form of the `portable` target: a KV cache that goes in and comes out longer, in plain operators.

| tensor | shape | dtype |
|---|---|---|
| inputs_embeds (in) | [B, S, C] | the bundle's precision |
| attention_mask (in) | [B, P + S] | int64, 1 where a token is; the S new ones are the last columns |
| position_ids (in) | [B, S] | int64; [A, B, S] of several axes |
| past_key_values.{i}.key / .value (in) | [B, kv heads, P, D] | the bundle's precision |
| logits (out) | [B, S, V] | float32 |
| present.{i}.key / .value (out) | [B, kv heads, P + S, D] | the bundle's precision |

Letters as in `base.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fico_export.models.decoders.base import Decoder, DecoderForm, causal_mask, with_plane
from fico_export.models.decoders.reducing import WithPast
from fico_export.models.ports import Inputs, Port, Ports


class PlainDecoder(Decoder):
    """Embeddings and a cache in, logits and the grown cache out; prefill and decode alike."""

    past_axis: ClassVar[str] = "past_sequence_length"
    present_axis: ClassVar[str] = "total_sequence_length"

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: Sequence[Tensor],
        planes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits [B, S, V], then key and value of each layer; `past` holds key, value, key, value and so on."""
        cos, sin = self.rotary(position_ids, inputs_embeds.dtype)
        allowed = (
            causal_mask(attention_mask.shape[1], inputs_embeds)
            & (attention_mask != 0)[:, None, None, None, :]
        )
        hidden, present = inputs_embeds, []
        for i, layer in enumerate(self.language_model.layers):
            hidden, cache = layer(hidden, (past[2 * i], past[2 * i + 1]), cos, sin, allowed)
            hidden = with_plane(hidden, planes, i)
            present += cache
        return self.logits(hidden), *present

    def ports(self) -> Ports:
        """As in the table above."""
        batch, new = "batch_size", "sequence_length"
        inputs: Inputs = (
            Port("inputs_embeds", (batch, new, self.config.hidden_size), self.dtype),
            Port("attention_mask", (batch, "total_sequence_length")),
            self.positions_port(batch),
            self.caches("past_key_values", batch, lambda layer: self.past_axis),
            *self.planes_port(batch),
        )
        present = self.caches("present", batch, lambda layer: self.present_axis)
        return Ports(inputs, (self.logits_port(batch), *present))

    def logits_port(self, batch: str) -> Port:
        """Logits after every token."""
        return Port("logits", (batch, "sequence_length", self.config.vocab_size), torch.float32)


FORM = DecoderForm(
    lambda config, dtype, rows, per_layer, batch: (WithPast if per_layer else PlainDecoder)(config, dtype)
)
