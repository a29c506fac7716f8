"""The vision graph: tower, reducer and projector in one module.

| tensor | shape | dtype |
|---|---|---|
| pixel_values (in) | [B, 3, S, S] | float32 |
| image_features (out) | [B, K, D] | the bundle's precision |
| keep_index (out) | [B, K] | int64, ascending raster positions; with a CLS token kept, 0 is CLS and patches start at 1 |
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from fico_export.models.parts.clip import ClipConfig, ClipLayer, ClipTower
from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.plan import Plan
from fico_export.reducers.base.reducer import Site
from fico_export.reducers.stages.select import take


class Projector(nn.Module):
    """Two linear layers from the tower's channels to the decoder's."""

    def __init__(self, inputs: int, outputs: int, activation: str, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
        self.linear_2 = nn.Linear(outputs, outputs, bias=bias, dtype=dtype)
        self.activation = ACT2FN[activation]

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, N, D]."""
        return self.linear_2(self.activation(self.linear_1(x)))


class Reduce(nn.Module):
    """One application of a reducer; a module, so that its nodes carry its name in the graph."""

    def __init__(self, plan: Plan, keep: int) -> None:
        super().__init__()
        self.plan, self.keep = plan, keep

    def forward(self, tokens: Tensor, cues: Cues) -> tuple[Tensor, Tensor, Tensor | None]:
        """[B, n, C] → [B, keep, C], the raster positions [B, keep] that they stand for, and patches per token or None."""
        reduced = self.plan.reducer.apply(tokens, cues, self.keep, self.plan.options)
        return reduced.tokens, take(cues.positions, reduced.indices), reduced.sizes


class VisionEncoder(nn.Module):
    """Pixels to K features, with the reducer acting at its site.

    Args:
        tower: the transformer.
        projector: to the decoder's channels.
        plan: what to reduce, and where.
        feature_layers: hidden states that feed the projector, counted from 0 = the embeddings.
        keeps_cls: whether the CLS token is handed to the decoder too.
    """

    def __init__(
        self,
        tower: ClipTower,
        projector: Projector,
        plan: Plan,
        feature_layers: tuple[int, ...],
        keeps_cls: bool,
    ) -> None:
        super().__init__()
        self.vision_tower = tower
        self.multi_modal_projector = projector
        self.feature_layers = feature_layers
        self.keeps_cls = keeps_cls
        steps: dict[str, nn.Module] = {f"layer_{i}": Reduce(plan, keep) for i, keep in plan.schedule.items()}
        for site in (Site.ENCODER_OUTPUT, Site.PROJECTOR_OUTPUT):
            if plan.acts_at(site):
                steps[site.name.lower()] = Reduce(plan, plan.keep - keeps_cls)
        self.reduce = nn.ModuleDict(steps)
        self.earlier_layer = plan.earlier_layer

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] → image_features [B, K, D], keep_index [B, K]."""
        config: ClipConfig = self.vision_tower.config
        hidden = self.vision_tower.embed(pixel_values.to(self.multi_modal_projector.linear_1.weight.dtype))
        positions = torch.arange(config.patches, device=hidden.device).expand(hidden.shape[0], -1)
        states = {0: hidden}
        cues = Cues(config.grid, positions)
        earlier = sizes = None
        for i, layer in enumerate(self.vision_tower.encoder.layers[: config.layers]):
            assert isinstance(layer, ClipLayer)
            hidden, queries, keys = layer.attend(hidden, sizes)
            cues = Cues(config.grid, positions, queries, keys, config.heads, True, sizes, earlier)
            if i == self.earlier_layer:
                earlier = cues
            if f"layer_{i}" in self.reduce:
                patches, positions, sizes = self.reduce[f"layer_{i}"](hidden[:, 1:], cues)
                hidden = torch.cat([hidden[:, :1], patches], dim=1)
            hidden = layer.feed_forward(hidden)
            if i + 1 in self.feature_layers:
                states[i + 1] = hidden

        features = torch.cat([states[i] for i in self.feature_layers], dim=-1)
        cls, features = features[:, :1], features[:, 1:]
        if len(self.vision_tower.encoder.layers) > config.layers:
            queries, keys = self.vision_tower.encoder.layers[-1](hidden)
            cues = replace(cues, following=Cues(config.grid, positions, queries, keys, has_cls=True))
        if "encoder_output" in self.reduce:
            features, positions, _ = self.reduce["encoder_output"](features, cues)
        if self.keeps_cls:
            features = torch.cat([cls, features], dim=1)
        features = self.multi_modal_projector(features)
        if "projector_output" in self.reduce:
            first = int(self.keeps_cls)
            patches, positions, _ = self.reduce["projector_output"](features[:, first:], cues)
            features = torch.cat([features[:, :first], patches], dim=1)
        if self.keeps_cls:
            positions = torch.cat([torch.zeros_like(positions[:, :1]), positions + 1], dim=1)
        return features, positions
