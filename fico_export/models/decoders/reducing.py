"""The decoder of a bundle that reduces visual tokens inside it: two graphs, whose caches differ in length by layer.

`decoder_prefill` runs a whole prompt with one image in it:

| tensor | shape | dtype |
|---|---|---|
| inputs_embeds (in) | [1, S, C] | the bundle's precision |
| position_ids (in) | [1, S] | int64 |
| visual_rows (in) | [1, N] | int64, ascending: the rows where the image's N visual tokens stand, in one run or among others |
| logits (out) | [1, 1, V] | float32, after the last token |
| keep_index (out) | [1, K] | int64, ascending: which of the image's tokens the last layer's cache holds |
| present.{i}.key / .value (out) | [1, kv heads, Sᵢ, D] | the bundle's precision |

`decoder_with_past` runs what follows, or a prompt without an image:

| tensor | shape | dtype |
|---|---|---|
| inputs_embeds (in) | [1, S, C] | the bundle's precision |
| position_ids (in) | [1, S] | int64 |
| past_key_values.{i}.key / .value (in) | [1, kv heads, Pᵢ, D] | the bundle's precision |
| logits (out) | [1, S, V] | float32 |
| present.{i}.key / .value (out) | [1, kv heads, Pᵢ + S, D] | the bundle's precision |

Tokens keep the position ids that they had in the whole prompt. Rows that hold no visual token are never dropped: text between the
tiles of an image stays, and is no part of the prompt that a method reads, which follows the image's last visual token.

Letters as in `base.py`; N visual tokens of the image, n of them live.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fico_export.bundle import graph_names
from fico_export.models.decoders.base import (
    Decoder,
    DecoderConfig,
    DecoderLayer,
    causal_mask,
    with_plane,
)
from fico_export.models.decoders.rows_left import rows_left
from fico_export.models.layers import join_heads
from fico_export.models.ports import Inputs, Port, Ports
from fico_export.models.vision import Reduce
from fico_export.reducers.base.cues import Cues, Prompt
from fico_export.reducers.base.plan import Step
from fico_export.reducers.stages.select import take


class _Rows(NamedTuple):
    """The live rows of the sequence.

    Hidden states and input embeddings [B, S, C], position ids [B, S] or [B, S, A], visual tokens [B, n], the rows [B, n] where they
    stand, and what is to be added after the first layers, [B, S, C] each.
    """

    hidden: Tensor
    embeds: Tensor
    positions: Tensor
    live: Tensor
    visual: Tensor
    planes: tuple[Tensor, ...] = ()


class _Image(NamedTuple):
    """The image in the whole prompt: embeddings [B, N, C] of its visual tokens, and the row [B, 1] after the last of them."""

    embeds: Tensor
    end: Tensor


class Prefill(Decoder):
    """A prompt in, its last logits and the shortened caches out.

    Args:
        config: of the decoder.
        step: what to reduce in which layers.
        dtype: of weights and arithmetic.
    """

    def __init__(self, config: DecoderConfig, step: Step, dtype: torch.dtype) -> None:
        super().__init__(config, dtype)
        self.step = step
        self.reduce = torch.nn.ModuleDict(
            {f"layer_{i}": Reduce(step, keep) for i, keep in step.schedule.items()}
        )

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        visual_rows: Tensor,
        planes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits [1, 1, V], kept visual tokens [1, K], then key and value of each layer."""
        live = torch.arange(self.step.before, device=inputs_embeds.device).expand(inputs_embeds.shape[0], -1)
        positions = position_ids if self.config.axes == 1 else position_ids.movedim(0, -1)
        added = () if planes is None else planes.unbind(1)
        rows = _Rows(inputs_embeds, inputs_embeds, positions, live, visual_rows, added)
        image = _Image(take(inputs_embeds, visual_rows), visual_rows[:, -1:] + 1)
        present: list[Tensor] = []
        for i, layer in enumerate(self.language_model.layers):
            assert isinstance(layer, DecoderLayer)
            acts = f"layer_{i}" in self.reduce
            if acts and self.step.reducer.before_attention:
                cos, sin = self._rotary(rows)
                scores = layer.self_attn.rotated(layer.input_layernorm(rows.hidden), cos, sin)
                rows = self._reduce(i, rows, *scores, image)
            cos, sin = self._rotary(rows)
            empty = rows.hidden.new_zeros(len(rows.hidden), self.config.kv_heads, 0, self.config.head_dim)
            allowed = causal_mask(rows.hidden.shape[1], rows.hidden)
            hidden, cache, queries = layer.attend(rows.hidden, (empty, empty), cos, sin, allowed)
            present += cache
            rows = rows._replace(hidden=hidden)
            if acts and not self.step.reducer.before_attention:
                rows = self._reduce(i, rows, queries, cache[0], image)
            hidden = layer.feed_forward(rows.hidden)
            rows = rows._replace(hidden=hidden + rows.planes[i] if i < len(rows.planes) else hidden)
        return self.logits(rows.hidden[:, -1:]), rows.live, *present

    def ports(self) -> Ports:
        """As in the first table above."""
        length = "sequence_length"
        inputs: Inputs = (
            Port("inputs_embeds", (1, length, self.config.hidden_size), self.dtype),
            self.positions_port(1),
            Port(graph_names.VISUAL_ROWS, (1, self.step.before)),
            *self.planes_port(1),
        )
        outputs = (
            Port("logits", (1, 1, self.config.vocab_size), torch.float32),
            Port("keep_index", (1, self.step.keep)),
            *self.caches("present", 1, lambda layer: f"total_sequence_length.{layer}"),
        )
        before = self.step.before
        return Ports(inputs, outputs, lengths={length: before + 5}, least={length: before + 2})

    def _reduce(self, i: int, rows: _Rows, queries: Tensor, keys: Tensor, image: _Image) -> _Rows:
        """Let the method act on the visual rows, by queries and keys of all rows, and close the gaps that it leaves."""
        n, total, reducer = rows.live.shape[1], rows.hidden.shape[1], self.step.reducer
        queries = join_heads(queries)
        keys = join_heads(keys.repeat_interleave(self.config.heads // self.config.kv_heads, dim=1))
        end = image.end - (self.step.before - n)  # what is dropped stood before it
        after = torch.arange(total, device=end.device) >= end
        prompt = Prompt(rows.embeds, after, image.embeds, queries, keys, rows.visual)
        # What is live is of several tiles, or left by another method: one row of N, where no token is above another.
        grid = 1, self.step.before
        mine = take(queries, rows.visual), take(keys, rows.visual)
        cues = Cues(grid, rows.live, *mine, self.config.heads, prompt=prompt)
        waiting = [take(plane, rows.visual) for plane in rows.planes[i:]]
        reduced, cues_left, planes = self.reduce[f"layer_{i}"](take(rows.hidden, rows.visual), cues, waiting)
        left = rows_left(rows.visual, reduced.indices, total)

        def closed(kept: Tensor, all_rows: Tensor) -> Tensor:
            return left.put(kept, all_rows) if reducer.merges else take(all_rows, left.source)

        later = (closed(kept, plane) for kept, plane in zip(planes, rows.planes[i:], strict=True))
        return _Rows(
            closed(reduced.tokens, rows.hidden),
            take(rows.embeds, left.source),
            take(rows.positions, left.source),
            cues_left.positions,
            left.visual,
            (*rows.planes[:i], *later),
        )

    def _rotary(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        positions = rows.positions if self.config.axes == 1 else rows.positions.movedim(-1, 0)
        return self.rotary(positions, rows.hidden.dtype)


class WithPast(Decoder):
    """New tokens after caches that each have a length of their own."""

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        past: Sequence[Tensor],
        planes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits [1, S, V], then key and value of each layer; `past` holds key, value, key, value and so on."""
        cos, sin = self.rotary(position_ids, inputs_embeds.dtype)
        hidden, present = inputs_embeds, []
        for i, layer in enumerate(self.language_model.layers):
            total = past[2 * i].shape[2] + hidden.shape[1]
            hidden, cache = layer(
                hidden, (past[2 * i], past[2 * i + 1]), cos, sin, causal_mask(total, hidden)
            )
            hidden = with_plane(hidden, planes, i)
            present += cache
        return self.logits(hidden), *present

    def ports(self) -> Ports:
        """As in the second table above."""
        inputs: Inputs = (
            Port("inputs_embeds", (1, "sequence_length", self.config.hidden_size), self.dtype),
            self.positions_port(1),
            self.caches("past_key_values", 1, _past),
            *self.planes_port(1),
        )
        outputs = (
            Port("logits", (1, "sequence_length", self.config.vocab_size), torch.float32),
            *self.caches("present", 1, lambda layer: f"total_sequence_length.{layer}"),
        )
        return Ports(inputs, outputs, lengths={_past(i): 5 + i for i in range(self.config.layers)})


def _past(layer: int) -> str:
    return f"past_sequence_length.{layer}"
