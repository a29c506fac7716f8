"""The vision graph: tower, reducer and projector in one module.

| tensor | shape | dtype |
|---|---|---|
| pixel_values (in) | [B, 3, S, S] | float32 |
| text_embeds (in) | [B, T, D] | the bundle's precision; the prompt's embeddings, for a method that reads the prompt here |
| text_mask (in) | [B, T] | int64, likewise: 1 for a token of the prompt, 0 for what fills up the rows |
| clip_text (in) | [B, P] | float32; what `clip_text.py` makes of the prompt, for a method that compares in CLIP's space |
| image_features (out) | [B, K, D] | the bundle's precision |
| keep_index (out) | [B, K] | int64, ascending raster positions; with a CLS token kept, 0 is CLS and patches start at 1 |
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from fico_export.models.parts.clip import ClipLayer, ClipTower
from fico_export.models.parts.layers import LayerNorm
from fico_export.models.parts.siglip import SiglipTower
from fico_export.reducers.base.cues import Cues, Prompt
from fico_export.reducers.base.plan import Plan, Step
from fico_export.reducers.base.reducer import Reduction, Site

Tower = ClipTower | SiglipTower

_NUDGE = 0.01  # on a hidden unit, to take the slope of its activation


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

    def sensitivity(self, x: Tensor) -> Tensor:
        """How far a small change of each token [B, N, C] moves its projection: [B, N], FP32.

        The Frobenius norm of the derivative W₂·diag(g′)·W₁, as if what the hidden units add were orthogonal: exactly, it
        takes a product as large as the second layer's. The order of the tokens is nearly that of the exact norm.
        """
        # Transposed as the layers read them: the graph then holds each weight once.
        inwards, outwards = (layer.weight.T.to(torch.float32) for layer in (self.linear_1, self.linear_2))
        unit = inwards.square().sum(0) * outwards.square().sum(1)  # [H]
        hidden = self.linear_1(x).to(torch.float32)
        # A difference, not a formula: it serves every activation.
        slope = (self.activation(hidden + _NUDGE) - self.activation(hidden - _NUDGE)) / (2 * _NUDGE)
        return (slope.square() @ unit[:, None]).squeeze(-1).sqrt()


class Reduce(nn.Module):
    """One application of a reducer; a module, so that its nodes carry its name in the graph."""

    def __init__(self, step: Step, keep: int) -> None:
        super().__init__()
        self.step, self.keep = step, keep

    def forward(self, tokens: Tensor, cues: Cues) -> tuple[Reduction, Cues]:
        """[B, n, C] → what is left of them, `keep` tokens, and the cues of those."""
        reduced = self.step.reducer.apply(tokens, cues, self.keep, self.step.options)
        return reduced, cues.kept(reduced.indices)


class ClipSpace(nn.Module):
    """From the tower's channels to the space that CLIP's pictures and texts share, as the checkpoint names it."""

    def __init__(self, inputs: int, outputs: int, norm_eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision_model = nn.ModuleDict({"post_layernorm": LayerNorm(inputs, norm_eps)})
        self.visual_projection = nn.Linear(inputs, outputs, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] → [B, n, P]."""
        return self.visual_projection(self.vision_model["post_layernorm"](x))


class VisionEncoder(nn.Module):
    """Pixels to features, with the reducers that act before the decoder at their sites.

    Args:
        tower: the transformer.
        projector: to the decoder's channels.
        plan: what to reduce, and where.
        feature_layers: hidden states that feed the projector, counted from 0 = the embeddings.
        keeps_cls: whether the CLS token is handed to the decoder too.

    Attributes:
        clip: the way to CLIP's space, set for a plan that reads `clip_text`.
    """

    clip: ClipSpace | None

    def __init__(
        self,
        tower: Tower,
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
        self.text_inputs = text_inputs(plan)
        self.reads_sensitivity = plan.reads("sensitivity")
        self.clip = None
        inside = plan.at(Site.ENCODER_LAYER)
        layers = inside.schedule if inside else {}
        steps: dict[str, nn.Module] = {
            f"layer_{i}": Reduce(inside, keep) for i, keep in layers.items() if inside
        }
        for site in (Site.ENCODER_OUTPUT, Site.PROJECTOR_OUTPUT):
            if step := plan.at(site):
                steps[site.name.lower()] = Reduce(step, step.keep - keeps_cls)
        self.reduce = nn.ModuleDict(steps)
        self.earlier_layer = next((s.earlier_layer for s in plan.steps if s.earlier_layer is not None), None)

    def forward(self, pixel_values: Tensor, *text: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] and what `text_inputs` names → image_features [B, K, D], keep_index [B, K]."""
        config, first = self.vision_tower.config, self.vision_tower.cls_tokens
        hidden = self.vision_tower.embed(pixel_values.to(self.multi_modal_projector.linear_1.weight.dtype))
        positions = torch.arange(config.patches, device=hidden.device).expand(hidden.shape[0], -1)
        states = {0: hidden}
        cues = Cues(config.grid, positions)
        earlier: Cues | None = None
        sizes: Tensor | None = None
        for i, layer in enumerate(self.vision_tower.encoder.layers[: config.layers]):
            assert isinstance(layer, ClipLayer)
            rows = None if sizes is None else _join(torch.ones_like(sizes[:, :first]), sizes)
            hidden, queries, keys = layer.attend(hidden, rows)
            cues = Cues(config.grid, cues.positions, queries, keys, config.heads, first > 0, sizes, earlier)
            if i == self.earlier_layer:
                earlier = cues
            if f"layer_{i}" in self.reduce:
                reduced, cues = self.reduce[f"layer_{i}"](hidden[:, first:], cues)
                hidden, sizes = _join(hidden[:, :first], reduced.tokens), reduced.sizes
            hidden = layer.feed_forward(hidden)
            if i + 1 in self.feature_layers:
                states[i + 1] = hidden

        features = torch.cat([states[i] for i in self.feature_layers], dim=-1)
        aside = int(self.keeps_cls)
        handed, features = features[:, :aside], features[:, first:]
        if len(self.vision_tower.encoder.layers) > config.layers:
            queries, keys = self.vision_tower.encoder.layers[-1](hidden)
            following = Cues(config.grid, cues.positions, queries, keys, has_cls=first > 0)
            cues = replace(cues, following=following)
        if "encoder_output" in self.reduce:
            reduced, cues = self.reduce["encoder_output"](features, cues)
            features = reduced.tokens
        cues = replace(cues, features=features)
        if self.reads_sensitivity:
            cues = replace(cues, sensitivity=self.multi_modal_projector.sensitivity(features))
        features = self.multi_modal_projector(_join(handed, features))
        if text:
            cues = self._with_text(cues, dict(zip(self.text_inputs, text, strict=True)), features[:, aside:])
        if "projector_output" in self.reduce:
            reduced, cues = self.reduce["projector_output"](features[:, aside:], cues)
            features = _join(features[:, :aside], reduced.tokens)
        if self.keeps_cls:
            first_row = torch.zeros_like(cues.positions[:, :1])
            return features, torch.cat([first_row, cues.positions + 1], dim=1)
        return features, cues.positions

    def _with_text(self, cues: Cues, text: dict[str, Tensor], tokens: Tensor) -> Cues:
        """The cues of the tokens [B, n, D] beside those of the prompt."""
        if "text_embeds" in text:
            cues = replace(cues, prompt=Prompt(text["text_embeds"], text["text_mask"] != 0, tokens))
        if "clip_text" in text:
            assert self.clip is not None
            cues = replace(cues, clip_text=text["clip_text"], clip_tokens=self.clip(cues.features))
        return cues


def text_inputs(plan: Plan) -> tuple[str, ...]:
    """Names of the vision graph's inputs after the pixels, in their order."""
    embeds = ("text_embeds", "text_mask") if plan.text_length else ()
    return (*embeds, "clip_text") if plan.reads("clip_text") else embeds


def _join(front: Tensor, rows: Tensor) -> Tensor:
    """Rows [B, 0 or 1, …] before rows [B, n, …]; none leave no node in the graph."""
    return torch.cat([front, rows], dim=1) if front.shape[1] else rows
