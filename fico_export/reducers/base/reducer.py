"""The record that makes a file of `reducers/` a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from fico_export.errors import ConfigError, unknown_name
from fico_export.reducers.base.cues import Cues

Positions = Literal["compact", "original"]


class Site(str, Enum):
    """Where in the model a reducer acts."""

    ENCODER_LAYER = "encoder layer"
    ENCODER_OUTPUT = "encoder output"
    PROJECTOR_OUTPUT = "projector output"


class Options(BaseModel):
    """Hyper-parameters of a method; a method's own subclass declares type, range, default and source."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    """How deep a tower is: `total` layers in the checkpoint, of which the first `used` feed the projector."""

    total: int
    used: int


@dataclass(frozen=True)
class Reducer(Generic[OptionsT]):
    """A method: a pure function of tensors, and where and on what it acts.

    Attributes:
        apply: (tokens [B, N, C], cues, keep, options) → Reduction. Patches only: a site keeps the CLS token aside.
        site: where it acts.
        source: paper, and the reference code's repository.
        filter: how it finds redundant tokens, in a few words.
        correlate: how it finds where their information goes; "–" for a method that only drops.
        compress: how it merges; "–" likewise.
        cues: names of what `apply` may read of the `Cues`.
        options: the class of its hyper-parameters.
        schedule: for `Site.ENCODER_LAYER`, (visual tokens N, keep K, depth, options) → {layer: tokens left after it}.
        earlier_layer: for a method that reads `cues.earlier`, depth → that layer, from 0.
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
    earlier_layer: Callable[[Depth], int] | None = None
    positions: Positions = "original"

    def parse_options(self, settings: dict[str, Any]) -> OptionsT:
        """Options from `--set name=value` pairs; values may be strings.

        Raises:
            ConfigError: an unknown name, or a value of the wrong type or out of range.
        """
        for name in settings:
            if name not in self.options.model_fields:
                if not self.options.model_fields:
                    raise ConfigError(
                        f"this method has no option {name!r}", mend="drop --set: it has no options"
                    )
                raise unknown_name("option", name, self.options.model_fields)
        try:
            return self.options.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            raise ConfigError(
                f"--set {name}={settings[name]}: {first['msg']}",
                mend=f"{name}: {self.options.model_fields[name].description}",
            ) from error
