"""The decoder of a bundle that reduces visual tokens inside it: two graphs, whose caches differ in length by layer.

`decoder_prefill` runs a whole prompt with one image in it:

| tensor | shape | dtype |
|---|---|---|
| inputs_embeds (in) | [1, S, C] | the bundle's precision |
| position_ids (in) | [1, S] | int64 |
| visual_start (in) | [1] | int64, the row where the image's tokens begin |
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

Tokens keep the position ids that they had in the whole prompt. Letters as in `base.py`; n live visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fico_export.models.decoders.base import (
    Decoder,
    DecoderConfig,
    DecoderLayer,
    causal_mask,
    with_plane,
)
from fico_export.models.layers import join_heads
from fico_export.models.ports import Inputs, Port, Ports
from fico_export.models.vision import Reduce
from fico_export.reducers.base.cues import Cues, Prompt
from fico_export.reducers.base.plan import Step
from fico_export.reducers.stages.select import take


class _Rows(NamedTuple):
    """The live rows of the sequence.

    Hidden states and input embeddings [B, S, C], position ids [B, S] or [B, S, A], visual tokens [B, n], and what is to be added
    after the first layers, [B, S, C] each.
    """

    hidden: Tensor
    embeds: Tensor
    positions: Tensor
    live: Tensor
    planes: tuple[Tensor, ...] = ()


class Prefill(Decoder):
    """A prompt in, its last logits and the shortened caches out.

    Args:
        config: of the decoder.
        step: what to reduce in which layers.
        grid: rows and columns of patches.
        dtype: of weights and arithmetic.
    """

    def __init__(self, config: DecoderConfig, step: Step, grid: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__(config, dtype)
        self.step, self.grid = step, grid
        self.reduce = torch.nn.ModuleDict(
            {f"layer_{i}": Reduce(step, keep) for i, keep in step.schedule.items()}
        )

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        visual_start: Tensor,
        planes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits [1, 1, V], kept visual tokens [1, K], then key and value of each layer."""
        live = torch.arange(self.step.before, device=inputs_embeds.device).expand(inputs_embeds.shape[0], -1)
        positions = position_ids if self.config.axes == 1 else position_ids.movedim(0, -1)
        added = () if planes is None else planes.unbind(1)
        rows = _Rows(inputs_embeds, inputs_embeds, positions, live, added)
        pictured = take(inputs_embeds, visual_start + live)
        present: list[Tensor] = []
        for i, layer in enumerate(self.language_model.layers):
            assert isinstance(layer, DecoderLayer)
            acts = f"layer_{i}" in self.reduce
            if acts and self.step.reducer.before_attention:
                cos, sin = self._rotary(rows)
                scores = layer.self_attn.rotated(layer.input_layernorm(rows.hidden), cos, sin)
                rows = self._reduce(i, rows, *scores, visual_start, pictured)
            cos, sin = self._rotary(rows)
            empty = rows.hidden.new_zeros(len(rows.hidden), self.config.kv_heads, 0, self.config.head_dim)
            allowed = causal_mask(rows.hidden.shape[1], rows.hidden)
            hidden, cache, queries = layer.attend(rows.hidden, (empty, empty), cos, sin, allowed)
            present += cache
            rows = rows._replace(hidden=hidden)
            if acts and not self.step.reducer.before_attention:
                rows = self._reduce(i, rows, queries, cache[0], visual_start, pictured)
            hidden = layer.feed_forward(rows.hidden)
            rows = rows._replace(hidden=hidden + rows.planes[i] if i < len(rows.planes) else hidden)
        return self.logits(rows.hidden[:, -1:]), rows.live, *present

    def ports(self) -> Ports:
        """As in the first table above."""
        length = "sequence_length"
        inputs: Inputs = (
            Port("inputs_embeds", (1, length, self.config.hidden_size), self.dtype),
            self.positions_port(1),
            Port("visual_start", (1,)),
            *self.planes_port(1),
        )
        outputs = (
            Port("logits", (1, 1, self.config.vocab_size), torch.float32),
            Port("keep_index", (1, self.step.keep)),
            *self.caches("present", 1, lambda layer: f"total_sequence_length.{layer}"),
        )
        before = self.step.before
        return Ports(inputs, outputs, lengths={length: before + 5}, least={length: before + 2})

    def _reduce(
        self, i: int, rows: _Rows, queries: Tensor, keys: Tensor, start: Tensor, pictured: Tensor
    ) -> _Rows:
        """Let the method act on the visual rows, by queries and keys of all rows, and close the gap that it leaves."""
        (batch, n), total = rows.live.shape, rows.hidden.shape[1]
        visual = (start + torch.arange(n, device=start.device)).expand(batch, -1)
        queries = join_heads(queries)
        keys = join_heads(keys.repeat_interleave(self.config.heads // self.config.kv_heads, dim=1))
        after = torch.arange(total, device=start.device) >= start + n
        prompt = Prompt(rows.embeds, after.expand(batch, -1), pictured, queries, keys, visual)
        cues = Cues(
            self.grid, rows.live, take(queries, visual), take(keys, visual), self.config.heads, prompt=prompt
        )
        waiting = [take(plane, visual) for plane in rows.planes[i:]]
        reduced, left, planes = self.reduce[f"layer_{i}"](take(rows.hidden, visual), cues, waiting)

        keep = reduced.indices.shape[1]
        # Row t of what is left: before the image t itself, in it the kept token, after it the row n − keep further on.
        t = torch.arange(total - (n - keep), device=start.device)
        offset = t - start
        inside = (offset >= 0) & (offset < keep)
        nth = offset.clamp(0, keep - 1).expand(batch, -1)
        source = torch.where(
            inside, start + take(reduced.indices, nth), torch.where(offset < 0, t, t + n - keep)
        )

        def closed(kept: Tensor, all_rows: Tensor) -> Tensor:
            return torch.where(inside[:, None], take(kept, nth), take(all_rows, source))

        later = (closed(kept, plane) for kept, plane in zip(planes, rows.planes[i:], strict=True))
        return _Rows(
            closed(reduced.tokens, rows.hidden),
            take(rows.embeds, source),
            take(rows.positions, source),
            left.positions,
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
