"""The vision graph: tower, reducer and merger in one module, whichever tower and merger they are.

| tensor | shape | dtype |
|---|---|---|
| pixel_values (in) | [T·F, 3, H, W] | float32; T tiles of an image, each of one, or of F frames of a video |
| valid (in) | [T, N] | int64; 0 for a token that shows padding, where those are no candidates |
| text_embeds (in) | [B, L, D] | the bundle's precision; the prompt's embeddings, for a method that reads the prompt here |
| text_mask (in) | [B, L] | int64, likewise: 1 for a token of the prompt, 0 for what fills up the rows |
| clip_text (in) | [B, P] | float32; what `clip_text.py` makes of the prompt, for a method that compares in CLIP's space |
| image_features (out) | [B, K, D] | the bundle's precision; K of all tiles |
| keep_index (out) | [B, K] | int64, ascending raster positions, tile by tile; with a CLS token kept, 0 of a tile is CLS and patches start at 1 |
| deepstack_features (out) | [B, L, K, D] | the bundle's precision; what the decoder adds after its first L layers, of a model that has such |

A reducer acts on cells: a cell is what becomes one visual token, a patch or several that the merger joins. Of a cell of p patches
it is shown one token of p·C channels, and cues that are the mean of its patches'. Planes, made of earlier layers, are reduced with the
cells that they are of.

Each tile is reduced by itself, to its share of K; at the merger's output tiles can be reduced as one. A batch B of images needs
images of one tile. Where shares differ, the tower runs once for each group of tiles with one share: what a reducer drops inside it
changes the shapes of all that follows. A graph of one tile serves images of several, tile by tile, where all shares are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from fico_export.bundle import graph_names
from fico_export.bundle.profiles import Profile
from fico_export.errors import ConfigError
from fico_export.models.layers import LayerNorm
from fico_export.models.mergers.base import Merger, Sensitive
from fico_export.models.ports import GraphModule, Port, Ports
from fico_export.models.towers.base import Tower, TowerLayer
from fico_export.reducers.base.cues import Cues, Prompt
from fico_export.reducers.base.plan import Group, ReductionPlan, Step
from fico_export.reducers.base.reducer import Reduction, Site
from fico_export.reducers.stages.select import take


class Reduce(nn.Module):
    """One application of a reducer; a module, so that its nodes carry its name in the graph."""

    def __init__(self, step: Step, keep: int) -> None:
        super().__init__()
        self.step, self.keep = step, keep

    def forward(
        self, tokens: Tensor, cues: Cues, planes: Sequence[Tensor] = ()
    ) -> tuple[Reduction, Cues, list[Tensor]]:
        """[B, n, C] → what is left of them, `keep` tokens, the cues of those, and what is left of planes [B, n, D] each.

        A method that merges is given planes as further channels of the tokens, which it merges by the same weights and else does not
        look at. Of any other the same rows are left.
        """
        reducer, options = self.step.reducer, self.step.options
        if not planes or not reducer.merges:
            reduced = reducer.apply(tokens, cues, self.keep, options)
            return reduced, cues.kept(reduced.indices), [take(plane, reduced.indices) for plane in planes]
        widths = [part.shape[-1] for part in (tokens, *planes)]
        carrying = replace(cues, channels=widths[0])
        reduced = reducer.apply(torch.cat([tokens, *planes], dim=-1), carrying, self.keep, options)
        left, *merged = reduced.tokens.split(widths, dim=-1)
        return replace(reduced, tokens=left), cues.kept(reduced.indices), merged


@dataclass(frozen=True)
class Parts:
    """What becomes of tiles: features [t, k, D], raster positions [t, k], and planes [t, L, k, D] where the model has such."""

    features: Tensor
    positions: Tensor
    planes: Tensor | None = None

    def along(self, first: int, tokens: int) -> Parts:
        """As one row of tokens [1, t·k, …], tiles numbered from `first` on, of so many tokens each."""
        tiles = first + torch.arange(len(self.positions), device=self.positions.device)
        planes = None if self.planes is None else self.planes.transpose(0, 1).flatten(1, 2)[None]
        positions = self.positions + (tiles * tokens)[:, None]
        return Parts(self.features.flatten(0, 1)[None], positions.flatten()[None], planes)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """In the order of the graph."""
        found = (self.features, self.positions)
        return found if self.planes is None else (*found, self.planes)


class ClipSpace(nn.Module):
    """From the tower's channels to the space that CLIP's images and texts share, as the checkpoint names it."""

    def __init__(self, inputs: int, outputs: int, norm_eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision_model = nn.ModuleDict({"post_layernorm": LayerNorm(inputs, norm_eps)})
        self.visual_projection = nn.Linear(inputs, outputs, bias=False, dtype=dtype)

    @property
    def outputs(self) -> int:
        """P."""
        return self.visual_projection.out_features

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] → [B, n, P]."""
        return self.visual_projection(self.vision_model["post_layernorm"](x))


class VisionEncoder(GraphModule):
    """Pixels to features, with the reducers that act before the decoder at their sites.

    Args:
        tower: the transformer.
        merger: to the decoder's channels.
        plan: what to reduce, and where.
        feature_layers: hidden states that feed the merger, counted from 0 = the embeddings.
        keeps_cls: whether the CLS token is handed to the decoder too.
        profile: of the images.

    Attributes:
        clip: the way to CLIP's space, set for a plan that reads `clip_text`.
    """

    clip: ClipSpace | None

    def __init__(
        self,
        tower: Tower,
        merger: Merger,
        plan: ReductionPlan,
        feature_layers: tuple[int, ...],
        keeps_cls: bool,
        profile: Profile,
    ) -> None:
        super().__init__()
        self.vision_tower = tower
        self.multi_modal_projector = merger
        self.feature_layers = feature_layers
        self.keeps_cls = keeps_cls
        self.profile = profile
        self.runs = profile.runs
        self.keep, self.text_length = plan.handed_over // self.runs, plan.text_length or 0
        self.masked = plan.masked
        self.extra_inputs = extra_inputs(plan)
        self.reads_sensitivity = plan.reads("sensitivity")
        if self.reads_sensitivity and not isinstance(merger, Sensitive):
            raise ConfigError(
                f"--method {plan.method} reads how far the projector moves each token, which this model's does not say",
                fix="choose another method: `fico list methods`",
            )
        self.clip = None
        self.groups = plan.groups if self.runs == 1 else (replace(plan.groups[0], tiles=1),)
        self.joint = plan.joint
        self.reduce = nn.ModuleDict()
        for part, group in [*self.parts(), *self._joint_parts()]:
            self.reduce.update(self._reducers(part, group.steps))
        self.earlier_layer = next((s.earlier_layer for s in plan.steps if s.earlier_layer is not None), None)

    def parts(self) -> list[tuple[str, Group]]:
        """Tiles that are reduced alike, and what the names of their reducers begin with: of the first, with nothing."""
        ends = accumulate(group.tiles for group in self.groups)
        starts = [end - group.tiles for end, group in zip(ends, self.groups, strict=True)]
        return [
            (f"tile_{start}_" if start else "", group)
            for start, group in zip(starts, self.groups, strict=True)
        ]

    def _joint_parts(self) -> list[tuple[str, Group]]:
        return [(f"joint_{i}_", group) for i, group in enumerate(self.joint)]

    def _reducers(self, part: str, steps: tuple[Step, ...]) -> dict[str, nn.Module]:
        """The modules that reduce a tile, by their places."""
        found: dict[str, nn.Module] = {}
        for step in steps:
            if step.reducer.site is Site.ENCODER_LAYER:
                found |= {f"{part}layer_{i}": Reduce(step, keep) for i, keep in step.schedule.items()}
            elif step.reducer.site is not Site.DECODER_LAYER:
                found[part + step.reducer.site.name.lower()] = Reduce(step, step.keep - self.keeps_cls)
        return found

    def forward(self, pixel_values: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """[T·F, 3, H, W] and what `extra_inputs` names → the outputs of the table above."""
        extra = dict(zip(self.extra_inputs, others, strict=True))
        pixels, valid = pixel_values, extra.pop(graph_names.VALID, None)
        if len(self.groups) == 1 and self.profile.tiles == self.runs:
            return self.of_tiles(pixels, extra, valid).outputs
        parts, first, tokens = [], 0, self.profile.visual_tokens // self.profile.tiles
        for part, group in self.parts():
            tiles, frames = slice(first, first + group.tiles), self.profile.frames
            mask = None if valid is None or self.joint else valid[tiles]
            shown = slice(tiles.start * frames, tiles.stop * frames)
            found = self.of_tiles(pixels[shown] if len(self.groups) > 1 else pixels, extra, mask, part)
            parts.append(found.along(first, tokens).outputs)
            first += group.tiles
        # Planes [1, L, K, D] have one axis more in front of the tokens.
        features, index, *planes = (
            torch.cat(part, dim=2 if part[0].dim() == 4 else 1) if len(part) > 1 else part[0]
            for part in zip(*parts, strict=True)
        )
        return self._jointly(features, index, valid) if self.joint else (features, index, *planes)

    def of_tiles(
        self, pixel_values: Tensor, text: dict[str, Tensor], valid: Tensor | None = None, part: str = ""
    ) -> Parts:
        """Tiles [t·F, 3, H, W], each by itself; positions are those within each.

        Args:
            pixel_values: of the tiles.
            text: what the graph takes of the prompt, by input.
            valid: [t, N], 0 for a token that shows padding.
            part: what the names of these tiles' reducers begin with.
        """
        reduce = {
            name.removeprefix(part): module for name, module in self.reduce.items() if name.startswith(part)
        }
        tower, merger, first = self.vision_tower, self.multi_modal_projector, self.vision_tower.cls_tokens
        states, cues, planes = self._through_layers(pixel_values, valid, reduce)
        features = torch.cat([states[i] for i in self.feature_layers], dim=-1)
        aside = int(self.keeps_cls)
        handed, features = features[:, :aside], _cells(features[:, first:], cues.cell)
        if len(tower.encoder.layers) > tower.config.layers:
            queries, keys = tower.encoder.layers[-1](states[tower.config.layers])
            following = Cues(cues.grid, cues.positions, queries, keys, has_cls=first > 0)
            cues = replace(cues, following=following)
        if "encoder_output" in reduce:
            reduced, cues, planes = reduce["encoder_output"](features, cues, planes)
            features = reduced.tokens
        cues = replace(cues, features=features)
        if self.reads_sensitivity and isinstance(merger, Sensitive):
            cues = replace(cues, sensitivity=merger.sensitivity(features))
        features = merger(_join(handed, _patches(features, cues.cell)))
        if self.profile.token_grid != cues.grid:  # the merger interpolated: of what it made, no cue is known
            cues = Cues(self.profile.token_grid, _raster(self.profile.token_grid, features), valid=cues.valid)
        if text:
            cues = self._with_text(cues, text, features[:, aside:])
        if "projector_output" in reduce:
            reduced, cues, planes = reduce["projector_output"](features[:, aside:], cues, planes)
            features = _join(features[:, :aside], reduced.tokens)
        index = cues.positions
        if self.keeps_cls:
            index = torch.cat([torch.zeros_like(index[:, :1]), index + 1], dim=1)
        return Parts(features, index, torch.stack(planes, dim=1) if planes else None)

    def _through_layers(
        self, pixel_values: Tensor, valid: Tensor | None, reduce: Mapping[str, nn.Module]
    ) -> tuple[dict[int, Tensor], Cues, list[Tensor]]:
        """Tiles through the tower: hidden states that feed the merger, the cues of the last layer, and planes; as of `of_tiles`."""
        tower, merger, side = self.vision_tower, self.multi_modal_projector, self.multi_modal_projector.side
        first, cell, (down, across) = tower.cls_tokens, side**2, self.profile.patch_grid
        grid = down // side, across // side
        hidden = tower.embed(pixel_values.to(merger.dtype))
        states, planes = {0: hidden}, list[Tensor]()
        cues = Cues(grid, _raster(grid, hidden), valid=None if valid is None else valid != 0, cell=cell)
        around, earlier = tower.around(None), None
        sizes: Tensor | None = None
        layers: list[TowerLayer] = tower.encoder.layers[: tower.config.layers]
        for i, layer in enumerate(layers):
            rows = None
            if sizes is not None:
                rows = _join(torch.ones_like(sizes[:, :first]), _of_patches(sizes, cell))
            hidden, queries, keys = layer.attend(hidden, rows, around)
            cues = replace(
                cues,
                queries=queries,
                keys=keys,
                heads=tower.config.heads,
                has_cls=first > 0,
                sizes=sizes,
                earlier=earlier,
            )
            if i == self.earlier_layer:
                earlier = cues
            if f"layer_{i}" in reduce:
                reduced, cues, planes = reduce[f"layer_{i}"](_cells(hidden[:, first:], cell), cues, planes)
                hidden, sizes = _join(hidden[:, :first], _patches(reduced.tokens, cell)), reduced.sizes
                around = tower.around(cues.positions)
            hidden = layer.feed_forward(hidden)
            if i + 1 in self.feature_layers:
                states[i + 1] = hidden
            planes += [merger.plane(n, hidden) for n, after in enumerate(merger.planes) if after == i]
        # The earlier layer of a shallow tower can be the last itself.
        return states, replace(cues, earlier=earlier), planes

    def _jointly(self, features: Tensor, index: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """All tokens [1, n, D] with their places [1, n] → what is left of each part that is reduced as one."""
        mask = None if valid is None else take(valid.flatten()[None], index) != 0
        kept, first = [], 0
        for name, group in self._joint_parts():
            rows = slice(first, first + group.before)
            cues = Cues((1, group.before), index[:, rows], valid=None if mask is None else mask[:, rows])
            part = features[:, rows]
            if group.steps:
                reduced, cues, _ = self.reduce[f"{name}projector_output"](part, cues)
                part = reduced.tokens
            kept.append((part, cues.positions))
            first += group.before
        found, where = (
            torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for parts in zip(*kept, strict=True)
        )
        return found, where

    def ports(self) -> Ports:
        """As in the table above, for one image."""
        dtype = self.multi_modal_projector.dtype
        channels = self.multi_modal_projector.outputs
        tiles, tokens = self.profile.tiles // self.runs, self.profile.visual_tokens // self.profile.tiles
        extra = {
            graph_names.VALID: Port(graph_names.VALID, (tiles, tokens)),
            "text_embeds": Port("text_embeds", (1, self.text_length, channels), dtype),
            "text_mask": Port("text_mask", (1, self.text_length)),
            "clip_text": Port("clip_text", (1, self.clip.outputs if self.clip else 0), torch.float32),
        }
        pixels = Port("pixel_values", self.profile.input_shape, torch.float32)
        outputs = [
            Port("image_features", (1, self.keep, channels), dtype),
            Port("keep_index", (1, self.keep)),
        ]
        if planes := len(self.multi_modal_projector.planes):
            outputs.append(Port(graph_names.DEEPSTACK, (1, planes, self.keep, channels), dtype))
        return Ports((pixels, *(extra[name] for name in self.extra_inputs)), tuple(outputs))

    def _with_text(self, cues: Cues, text: dict[str, Tensor], tokens: Tensor) -> Cues:
        """The cues of the tokens [B, n, D] beside those of the prompt, the same for every tile."""
        if (count := len(tokens)) > 1:
            text = {name: rows.expand(count, *rows.shape[1:]) for name, rows in text.items()}
        if "text_embeds" in text:
            cues = replace(cues, prompt=Prompt(text["text_embeds"], text["text_mask"] != 0, tokens))
        if "clip_text" in text:
            assert self.clip is not None
            cues = replace(cues, clip_text=text["clip_text"], clip_tokens=self.clip(cues.features))
        return cues


def extra_inputs(plan: ReductionPlan) -> tuple[str, ...]:
    """Names of the vision graph's inputs after the pixels, in their order."""
    valid = (graph_names.VALID,) if plan.masked else ()
    embeds = ("text_embeds", "text_mask") if plan.text_length else ()
    return (*valid, *embeds, *(("clip_text",) if plan.reads("clip_text") else ()))


def _raster(grid: tuple[int, int], hidden: Tensor) -> Tensor:
    """[B, N] positions of all cells."""
    return torch.arange(grid[0] * grid[1], device=hidden.device).expand(hidden.shape[0], -1)


def _join(front: Tensor, rows: Tensor) -> Tensor:
    """Rows [B, 0 or 1, …] before rows [B, n, …]; none leave no node in the graph."""
    return torch.cat([front, rows], dim=1) if front.shape[1] else rows


def _cells(rows: Tensor, patches: int) -> Tensor:
    """Patches [B, n·p, C] as cells [B, n, p·C]."""
    return rows if patches == 1 else rows.reshape(len(rows), -1, patches * rows.shape[-1])


def _patches(cells: Tensor, patches: int) -> Tensor:
    """Cells [B, n, p·C] as patches [B, n·p, C]."""
    return cells if patches == 1 else cells.reshape(len(cells), -1, cells.shape[-1] // patches)


def _of_patches(of_cells: Tensor, patches: int) -> Tensor:
    """[B, n] → [B, n·p], the same for every patch of a cell."""
    return of_cells if patches == 1 else of_cells[..., None].expand(*of_cells.shape, patches).flatten(1)
