"""The record that makes a file of `reducers/` a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fico_export.errors import ConfigError, unknown_name
from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.options import describe

Positions = Literal["compact", "original"]


class Site(str, Enum):
    """Where in the model a reducer acts, in the order in which the tokens pass."""

    ENCODER_LAYER = "encoder layer"
    ENCODER_OUTPUT = "encoder output"
    PROJECTOR_OUTPUT = "projector output"
    DECODER_LAYER = "decoder layer"


class Options(BaseModel):
    """Hyper-parameters of a method; a method's own subclass declares type, range, default and source."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TextOptions(Options):
    """Hyper-parameters of a method that reads the prompt before the decoder."""

    text_length: int = Field(
        128, ge=32, le=4096, description="tokens of the longest prompt that the graph takes (ours)"
    )


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Reduction:
    """What a reducer leaves.

    Attributes:
        tokens: [B, K, C].
        indices: [B, K] int64, ascending: which input token each is, or was merged into.
        sizes: [B, K] how many patches each holds, of a method that weighs tokens by it in the layers that follow.
    """

    tokens: Tensor
    indices: Tensor
    sizes: Tensor | None = None


@dataclass(frozen=True)
class Depth:
    """How deep a stack is: `total` layers in the checkpoint, of which a reducer may act in the first `used`.

    Of a tower those that feed the projector, of a decoder all but the last: after that one no cache is left to shorten.
    """

    total: int
    used: int


@dataclass(frozen=True)
class Published:
    """Accuracy that was published, in per cent of the model with all tokens: {K: %}, and under which protocol."""

    accuracy: dict[int, float]
    protocol: str


@dataclass(frozen=True)
class InTiles:
    """How a method was published on LLaVA-NeXT, and its accuracy there in per cent of the model with all 2880 tokens.

    Attributes:
        flags: of an export that does the same.
        accuracy: {K: %}.
        protocol: under which it was measured.
        differs: what the export does otherwise.
    """

    flags: str
    accuracy: dict[int, float] = field(default_factory=dict)
    protocol: str = ""
    differs: str = ""


@dataclass(frozen=True)
class Reducer(Generic[OptionsT]):
    """A method: a pure function of tensors, and where and on what it acts.

    Attributes:
        apply: (tokens [B, N, C], cues, keep, options) → Reduction. Patches only: a site keeps the CLS token aside. One that merges
            looks at `cues.own(tokens)` alone: channels that follow those are merged with them.
        site: where it acts.
        source: paper, and the reference code's repository.
        filter: how it finds redundant tokens, in a few words.
        correlate: how it finds where their information goes; "–" for a method that only drops.
        compress: how it merges; "–" likewise.
        cues: names of what `apply` may read of the `Cues`.
        options: the class of its hyper-parameters.
        schedule: for a site that is a layer, (visual tokens N, keep K, depth, options) → {layer: tokens left after it}.
        before_attention: in a layer, whether it acts before the attention, by scores of the tokens that come in, or after it.
        earlier_layer: for a method that reads `cues.earlier`, depth → that layer, from 0.
        whole_grid: whether it needs every patch of the grid, and so cannot follow another method.
        without_cls: what it does in a tower without a CLS token; None refuses such a tower.
        published: accuracy that others have measured.
        in_tiles: how it was published on LLaVA-NeXT.
        positions: the default positions policy of its bundles.
    """

    apply: Callable[[Tensor, Cues, int, OptionsT], Reduction]
    site: Site
    source: str
    filter: str
    options: type[OptionsT]
    correlate: str = "–"
    compress: str = "–"
    cues: frozenset[str] = frozenset()
    schedule: Callable[[int, int, Depth, OptionsT], dict[int, int]] | None = None
    before_attention: bool = False
    earlier_layer: Callable[[Depth], int] | None = None
    whole_grid: bool = False
    without_cls: str | None = "the same"
    published: Published | None = None
    in_tiles: InTiles | None = None
    positions: Positions = "original"

    @property
    def merges(self) -> bool:
        """Whether it merges tokens, and does not only drop them."""
        return self.compress != "–"

    def parse_options(self, settings: dict[str, Any]) -> OptionsT:
        """Options from `--set name=value` pairs; values may be strings.

        Raises:
            ConfigError: an unknown name, or a value of the wrong type or out of range.
        """
        return parse(self.options, settings)


@dataclass(frozen=True)
class Composite(Generic[OptionsT]):
    """A method that is other methods one after another.

    Attributes:
        parts: their names, in the order of their sites; each with its default options.
        split: (visual tokens N, keep K, options) → the budget of each part, the last one K.
        source: as of a `Reducer`; so are `options`, `published`.
    """

    parts: tuple[str, ...]
    split: Callable[[int, int, OptionsT], list[int]]
    source: str
    options: type[OptionsT]
    published: Published | None = None

    def parse_options(self, settings: dict[str, Any]) -> OptionsT:
        """As of a `Reducer`."""
        return parse(self.options, settings)


def parse(options: type[OptionsT], settings: dict[str, Any]) -> OptionsT:
    """Options of a class from `--set name=value` pairs.

    Raises:
        ConfigError: an unknown name, or a value of the wrong type or out of range.
    """
    for name in settings:
        if name not in options.model_fields:
            if not options.model_fields:
                raise ConfigError(f"this method has no option {name!r}", fix="drop --set: it has no options")
            raise unknown_name("option", name, options.model_fields)
    try:
        return options.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(
            f"--set {name}={settings[name]}: {first['msg']}",
            fix=f"{name}: {next(option for option in describe(options) if option.name == name)}",
        ) from error
