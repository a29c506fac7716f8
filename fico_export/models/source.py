"""The record that makes a file of `models/` a model family, and what a loaded model offers to the exporter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from fico_export.bundle.manifest import Tokens
from fico_export.bundle.profiles import VIDEO, LayoutRecord, Profile
from fico_export.errors import CheckpointError, ConfigError
from fico_export.models.clip_text import PREFIX, Clip
from fico_export.models.decoders.base import Decoder, DecoderConfig, EmbedTokens
from fico_export.models.vision import VisionEncoder
from fico_export.models.weights import Weights
from fico_export.options import ExportOptions
from fico_export.reducers.base.plan import ReductionPlan
from fico_export.reducers.base.tiling import Tiling

if TYPE_CHECKING:
    from typing_extensions import Self

SHAPES = ("profile", "resolution", "tiling", "base_keep", "unpad", "newlines", "frames")
"""Options of an export that choose among the ways in which a model sees an image."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Files:
    """The text files of a bundle, by name, besides the graphs.

    `warnings` is what an export should say of them, `other_template` how to put another chat template in the place of theirs.
    """

    tokenizer: str
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    config: dict[str, Any]
    generation_config: dict[str, Any]
    preprocessor: dict[str, Any]
    processor: dict[str, Any]
    warnings: tuple[str, ...] = ()
    other_template: str = ""


class MakePlan(Protocol):
    """Checks a request against a model."""

    def __call__(
        self,
        method: str,
        keep: int | None,
        settings: dict[str, Any],
        profile: Profile | None = None,
        tiling: Tiling = ...,
    ) -> ReductionPlan:
        """The plan for images of a profile, by default the first; raises ConfigError."""
        ...


class Shape(Protocol):
    """What a request chooses of how a model sees images."""

    def __call__(self, options: ExportOptions) -> tuple[tuple[Profile, ...], LayoutRecord, Tiling]:
        """The profiles to export, how a prompt shows their images, and how a budget is shared; raises ConfigError."""
        ...


class MakeVision(Protocol):
    """Builds the vision graph's module, parameters uninitialised."""

    def __call__(
        self,
        plan: ReductionPlan,
        dtype: torch.dtype,
        profile: Profile | None = None,
        layers: int | None = None,
    ) -> VisionEncoder:
        """For images of a profile, by default the first.

        With `layers`, of a model with `equal_layers`, the tower has so many, and whatever reads one reads the last.
        """
        ...


@dataclass(frozen=True)
class EqualLayers:
    """Layers of a tower that are all alike, so that a graph can be traced with a few of them.

    Attributes:
        count: how many the tower has.
        readers: modules that read another layer's output than the last's → its number.
    """

    count: int
    readers: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What config.json alone says of a model: builds its graphs' modules, parameters uninitialised.

    Attributes:
        model_type: as in config.json.
        shapes: of every tensor that the graphs read, by canonical name.
        profiles: what is fixed at export for each shape of image, nothing reduced; the first is what a bundle is for.
        layout: how a prompt shows an image.
        decoder_config: shape of the decoder.
        plan: what a request makes of the visual tokens.
        vision: the vision graph's module.
        transformers_class: transformers' class of the whole model, which `verify` compares with; None where it has none.
        shape: what a request chooses of profiles, layout and tiling; None where there is no choice.
        choices: options of `SHAPES` that it reads.
        newline: canonical name of the vector that ends a row of visual tokens; None where there is none.
        equal_layers: those of the tower; None where they differ.
    """

    model_type: str
    shapes: Mapping[str, tuple[int, ...]]
    profiles: tuple[Profile, ...]
    layout: LayoutRecord
    decoder_config: DecoderConfig
    plan: MakePlan
    vision: MakeVision
    transformers_class: str | None = None
    shape: Shape | None = None
    choices: tuple[str, ...] = ()
    newline: str | None = None
    equal_layers: EqualLayers | None = None

    def shaped(self, options: ExportOptions) -> Self:
        """This model with the profiles and the layout that a request, whose method is named, asks for.

        Raises:
            ConfigError: the model does not offer them.
        """
        for name in SHAPES:
            if name not in self.choices and getattr(options, name) not in (None, False):
                raise ConfigError(
                    f"--{name.replace('_', '-')} with a {self.model_type} model, which offers no such choice",
                    fix=f"drop --{name.replace('_', '-')}",
                )
        if self.shape is None:
            return self
        profiles, layout, tiling = self.shape(options)
        plan = partial(self.plan, profile=profiles[0], tiling=tiling)
        vision = partial(self.vision, profile=profiles[0])
        return replace(self, profiles=profiles, layout=layout, plan=plan, vision=vision)

    @property
    def profile(self) -> Profile:
        """The first."""
        return self.profiles[0]

    def plan_for(self, plan: ReductionPlan, profile: Profile) -> ReductionPlan:
        """What a plan that was made for images of the first profile is for those of another.

        Raises:
            ConfigError: they cannot have it.
        """
        if profile == self.profile:
            return plan
        keep = None if plan.method == "none" else plan.keep
        try:
            return self.plan(plan.method, keep, plan.settings, profile=profile)
        except ConfigError as error:
            option = "--resolution" if "resolution" in self.choices else "--profile"
            without = (
                "drop --frames" if profile.name == VIDEO else f"leave it out: {option} {self.profile.name}"
            )
            raise ConfigError(
                f"the profile {profile.name} cannot have this: {error.what}", fix=f"{error.fix}; or {without}"
            ) from error

    def embed_tokens(self, dtype: torch.dtype) -> EmbedTokens:
        """The embedding graph's module, parameters uninitialised."""
        return EmbedTokens(self.decoder_config, dtype)


@dataclass(frozen=True, kw_only=True)
class SourceModel(Architecture):
    """A checkpoint that was read and found whole: its modules get their weights when asked.

    Attributes:
        folder: where it lies.
        revision: commit of the hub repository, or None for a plain folder.
        checkpoint: its tensors.
        tokens: special tokens.
        files: reads the tokenizer, the templates and the configs.
        clip: the CLIP model that reads the prompt for a method that asks for it; its tensors are in `checkpoint`.
    """

    folder: Path
    revision: str | None
    checkpoint: Weights
    tokens: Tokens
    files: Callable[[], Files]
    clip: Clip | None = None

    def with_clip(self, clip: Clip) -> SourceModel:
        """This model and a CLIP model, whose vision tower's channels are those that feed the projector.

        Raises:
            CheckpointError: they are not.
        """
        projector = self.shapes.get("multi_modal_projector.linear_1.weight")
        if projector is None:
            raise CheckpointError(
                f"--clip-text with a {self.model_type} model, whose vision tower is of no CLIP model",
                fix="drop --clip-text, and choose a method that needs none: `fico list methods --verbose`",
            )
        channels = projector[1]
        if channels != clip.vision_size:
            raise CheckpointError(
                f"--clip-text: the vision tower of {clip.folder} has {clip.vision_size} channels, "
                f"and what feeds this model's projector has {channels}",
                fix="give the CLIP model that the vision tower comes from; without one, choose a method that needs none",
            )
        checkpoint = copy.copy(self.checkpoint)
        mine, its = self.checkpoint.tensors, clip.checkpoint.tensors
        checkpoint.tensors = mine | {PREFIX + name: stored for name, stored in its.items()}

        def vision(
            plan: ReductionPlan, dtype: torch.dtype, profile: Profile | None = None, layers: int | None = None
        ) -> VisionEncoder:
            encoder = self.vision(plan, dtype, profile=profile or self.profile, layers=layers)
            if plan.reads("clip_text"):
                encoder.clip = clip.space(dtype)
            return encoder

        shapes = {PREFIX + name: shape for name, shape in clip.shapes().items()}
        return replace(
            self, checkpoint=checkpoint, shapes={**self.shapes, **shapes}, vision=vision, clip=clip
        )

    def weights(self) -> dict[str, int]:
        """Size in bytes of each file of weights: tells one checkpoint from another."""
        return {file.name: file.stat().st_size for file in self.checkpoint.files}

    def with_weights(self, module: ModuleT) -> ModuleT:
        """The module with the checkpoint's weights in its parameters' dtypes, ready to run in torch."""
        wanted = {name: parameter.dtype for name, parameter in module.named_parameters()}
        state = {name: tensor.to(wanted[name]) for name, tensor in self.checkpoint.stream(list(wanted))}
        module.load_state_dict(state, assign=True)
        return module.eval().requires_grad_(False)


def parameter_shapes(vision: Callable[[], nn.Module], config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Of every tensor that a model's graphs read, by canonical name; `vision` builds the module of its vision graph."""
    with torch.device("meta"):
        parts = vision(), Decoder(config, torch.float32), EmbedTokens(config, torch.float32)
    return {name: tuple(p.shape) for part in parts for name, p in part.named_parameters()}


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        model_types: values of `model_type` in config.json that it loads.
        aliases: short name → hub id.
        load: (folder, revision) → SourceModel; raises CheckpointError.
        describe: content of config.json → Architecture; raises CheckpointError.
    """

    model_types: tuple[str, ...]
    aliases: dict[str, str]
    load: Callable[[Path, str | None], SourceModel]
    describe: Callable[[dict[str, Any]], Architecture]
