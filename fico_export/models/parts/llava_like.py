"""What LLaVA and its successors share: a CLIP or SigLIP tower, a two-layer projector, and a Llama, Mistral or Qwen2 decoder.

They differ in how an image becomes tiles, and in what stands between the tiles' tokens: a `Variety` says so.
Source: Liu et al., arXiv 2310.03744; checkpoints as llava-hf publishes them and as transformers 5 saves them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fico_export.bundle.profiles import LayoutRecord, Profile
from fico_export.errors import CheckpointError
from fico_export.models.mergers.mlp import Projector
from fico_export.models.mergers.pooled import Pooled
from fico_export.models.parts import config_check, texts
from fico_export.models.parts.opened import opened
from fico_export.models.parts.text_config import decoder_config
from fico_export.models.parts.tower_shape import tower_shape
from fico_export.models.source import Architecture, Files, Shape, SourceModel, parameter_shapes
from fico_export.models.towers.clip import ClipConfig, ClipTower
from fico_export.models.towers.siglip import SiglipTower
from fico_export.models.vision import VisionEncoder
from fico_export.models.weights import read_json
from fico_export.reducers.base.plan import Limits, ReductionPlan, make_plan
from fico_export.reducers.base.reducer import Depth, Site
from fico_export.reducers.base.tiling import EQUAL, Tiling

NEWLINE = "image_newline"
"""Canonical name of the vector at the end of a row of visual tokens."""

_TOWERS: dict[str, type[ClipTower | SiglipTower]] = {
    "clip_vision_model": ClipTower,
    "clip": ClipTower,
    "siglip_vision_model": SiglipTower,
}
_DECODERS = ("llama", "mistral", "qwen2")
_STRATEGIES = ("default", "full")
_LAYERS = "vision_tower.encoder.layers."
_AFTER_TOWER = re.compile(
    r"vision_tower\.(post_layernorm\.(weight|bias)|head\.(probe|attention\.in_proj_(weight|bias)|attention\.out_proj\.(weight|bias)"
    r"|layernorm\.(weight|bias)|mlp\.fc[12]\.(weight|bias))|text_model\..*|(text|visual)_projection\.weight|logit_(scale|bias))"
)
"""The last norm, SigLIP's pooling head, and CLIP's text tower: LLaVA takes the hidden states of a layer."""


@dataclass(frozen=True)
class Images:
    """How a model sees images.

    Attributes:
        profiles: all that it has, nothing reduced.
        layout: how a prompt shows an image.
        shape: what a request chooses of both; None where there is no choice.
        newline: whether a vector ends the rows of visual tokens.
        choices: options that `shape` reads.
    """

    profiles: tuple[Profile, ...]
    layout: LayoutRecord
    shape: Shape | None = None
    newline: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variety:
    """A model family of this kind.

    Attributes:
        name: for messages.
        model_type: as in config.json.
        config_class: transformers' class of its config.
        transformers_class: transformers' class of the whole model.
        image_processor: the one that transformers takes where no file names one.
        images: (config, tower, tokens beside the patches) → how it sees images.
        files: completes the text files, and refuses those that do not fit the config; raises CheckpointError.
    """

    name: str
    model_type: str
    config_class: Any
    transformers_class: str
    image_processor: str
    images: Callable[[Any, ClipConfig, int], Images]
    files: Callable[[Files, Any], Files] = lambda files, config: files


def load(variety: Variety, folder: Path, revision: str | None) -> SourceModel:
    """The model in a folder, every tensor found and of the right shape.

    Raises:
        CheckpointError: the config asks for something that is not supported, or tensors are missing.
    """
    raw = read_json(folder / "config.json")
    described, config = describe(variety, raw), _parsed(variety, raw)
    unread = _unread(_tower_config(config)[0], described.shapes)

    def files(files: Files) -> Files:
        return variety.files(texts.with_processor_named(files, variety.image_processor), config)

    return opened(folder, revision, raw, config, described, unread=unread, files=files)


def _unread(tower: ClipConfig, shapes: Mapping[str, tuple[int, ...]]) -> Callable[[str], bool]:
    """Tells whether a tensor is one that the tower has and LLaVA does not need: what comes after the layer it takes."""
    layer = f"{_LAYERS}0."
    within = {name.removeprefix(layer) for name in shapes if name.startswith(layer)}

    def unread(name: str) -> bool:
        number, _, rest = name.removeprefix(_LAYERS).partition(".")
        if name.startswith(_LAYERS) and number.isdecimal():
            return tower.layers <= int(number) < tower.total_layers and (rest in within or not within)
        return _AFTER_TOWER.fullmatch(name) is not None

    return unread


def describe(variety: Variety, raw: dict[str, Any]) -> Architecture:
    """What the content of config.json says, without any other file.

    Raises:
        CheckpointError: it asks for something that is not supported.
    """
    config = _parsed(variety, raw)
    with config_check.reading(variety.name):
        tower, feature_layers = _tower_config(config)
        decoder = decoder_config(config.text_config)
    kind = _TOWERS[config.vision_config.model_type]
    keeps_cls = kind.cls_tokens > 0 and config.vision_feature_select_strategy == "full"
    with config_check.reading(variety.name):
        images = variety.images(config, tower, int(keeps_cls))
    first = images.profiles[0]

    depths = Depth(tower.total_layers, tower.layers), Depth(decoder.layers, decoder.layers - 1)
    of_one = Limits(tower.patches, int(keeps_cls), *depths, has_cls=kind.cls_tokens > 0)

    def plan(
        method: str,
        keep: int | None,
        settings: dict[str, Any],
        profile: Profile | None = None,
        tiling: Tiling = EQUAL,
    ) -> ReductionPlan:
        made = make_plan(method, keep, settings, _limits(of_one, profile or first, tiling))
        if made.at(Site.ENCODER_LAYER) and len(feature_layers) > 1:
            raise CheckpointError(
                f"--method {method} shortens the tower between the layers {feature_layers} that this model joins",
                fix="choose a method of another site: `fico list methods --verbose`",
            )
        return made

    def vision(
        plan: ReductionPlan, dtype: torch.dtype, profile: Profile | None = None, layers: int | None = None
    ) -> VisionEncoder:
        bias = getattr(config, "multimodal_projector_bias", True)
        inputs, outputs = tower.hidden_size * len(feature_layers), decoder.hidden_size
        projector = (inputs, outputs, config.projector_hidden_act, bias, dtype)
        taken, seen = profile or first, kind(tower, dtype, ahead=plan.reads("following"))
        pooled = taken.token_grid != tower.grid  # a video's
        merger = Pooled(tower.grid, taken.token_grid, *projector) if pooled else Projector(*projector)
        return VisionEncoder(seen, merger, plan, feature_layers, keeps_cls, taken)

    with config_check.reading(variety.name):
        shapes = parameter_shapes(lambda: vision(plan("none", None, {}), torch.float32), decoder)
    if images.newline:
        shapes = {**shapes, NEWLINE: (decoder.hidden_size,)}
    return Architecture(
        model_type=variety.model_type,
        shapes=shapes,
        profiles=images.profiles,
        layout=images.layout,
        decoder_config=decoder,
        plan=plan,
        vision=vision,
        transformers_class=variety.transformers_class,
        shape=images.shape,
        choices=images.choices,
        newline=NEWLINE if images.newline else None,
    )


def _limits(of_one: Limits, profile: Profile, tiling: Tiling) -> Limits:
    """Those of an image of a profile; `of_one` are those of a tile."""
    return replace(
        of_one,
        patches=math.prod(profile.token_grid),
        tiles=profile.tiles,
        merged=profile.token_grid != profile.patch_grid,
        tiling=tiling if profile.tiles > 1 else replace(tiling, kind="per-tile"),
    )


def _parsed(variety: Variety, raw: dict[str, Any]) -> Any:
    with config_check.reading(variety.name):
        config_check.check_parts(raw)
        _check_supported(raw)
        config_check.check_llava(raw)
        config = variety.config_class.from_dict(raw)
        config_check.check_fit(config.to_dict())
        return config


def _check_supported(config: dict[str, Any]) -> None:
    """Refuse parts by name before transformers does, which would list all that it knows itself."""
    vision, decoder = config.get("vision_config") or {}, config.get("text_config") or {}
    tower = vision.get("model_type", "clip_vision_model")
    strategy = config.get("vision_feature_select_strategy", "default")
    for what, asked, supported in (
        ("vision tower", tower, tuple(_TOWERS)),
        ("decoder", decoder.get("model_type", _DECODERS[0]), _DECODERS),
        ("vision_feature_select_strategy", strategy, _STRATEGIES),
    ):
        if asked not in supported:
            raise CheckpointError(
                f"{what} {asked!r} is not supported", fix=f"supported: {', '.join(supported)}"
            )
    if strategy == "default" and not _TOWERS[tower].cls_tokens:
        raise CheckpointError(
            "vision_feature_select_strategy 'default' drops the first patch of a tower without a CLS token",
            fix='a model trained on all patches has "full" there in config.json',
        )


def _tower_config(config: Any) -> tuple[ClipConfig, tuple[int, ...]]:
    vision = config.vision_config
    asked = config.vision_feature_layer
    asked = asked if isinstance(asked, (list, tuple)) else [asked]
    total = vision.num_hidden_layers
    feature_layers = tuple(layer if layer >= 0 else total + 1 + layer for layer in asked)
    if not feature_layers or not all(0 <= layer <= total for layer in feature_layers):
        raise CheckpointError(
            f"vision_feature_layer {config.vision_feature_layer} is outside a tower of {total} layers",
            fix="use the config.json of this checkpoint",
        )
    return (
        tower_shape(ClipConfig, vision, layers=max(feature_layers)),
        feature_layers,
    )
