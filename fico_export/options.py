"""What an export is asked for: one record is the flags, the Python keywords, the keys of a recipe and the manifest's request.

A field is an option: its name is the keyword and the recipe's key, `--name` the flag, its description the text of `--help`.
To add one, add a field here. `fico plan` takes those that change what it estimates.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from fico_export.errors import unknown_name

if TYPE_CHECKING:
    from typing_extensions import Self


DEFAULT_METHOD = "ficoco-v"


@dataclass(frozen=True)
class About:
    """What an option is.

    Attributes:
        text: the line of `--help`.
        short: short form of the flag, such as `-k`.
        metavar: name of the value in `--help`.
        flag: the flag, where it is not `--` and the field's name.
        choices: the values that there are; empty where any is taken.
        kind: what a value that is none of them is called in an error; empty for the field's name.
        planned: whether `fico plan` takes it.
        local: whether it is of this run and this machine alone: the manifest does not repeat it.
    """

    text: str
    short: str = ""
    metavar: str | None = None
    flag: str = ""
    choices: tuple[str, ...] = ()
    kind: str = ""
    planned: bool = False
    local: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export. None leaves the choice to the device, the target, the method or the model."""

    # Read by pydantic, which checks the values; it is imported when there is something to check, as --help must be quick.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    model: Annotated[
        str | Path,
        About(
            "Model to export: an alias (llava-1.5-7b), a hub id, a checkpoint folder, or demo. Default: demo.",
            short="-m",
            planned=True,
        ),
    ] = "demo"
    keep: Annotated[
        int | None, About("Number of visual tokens to keep.", short="-k", metavar="K", planned=True)
    ] = None
    method: Annotated[
        str | None,
        About(
            f"Reduction method, or a chain of them; `fico list methods`. Default: {DEFAULT_METHOD}, or none without --keep.",
            metavar="METHOD[@K,METHOD@K…]",
            planned=True,
        ),
    ] = None
    settings: Annotated[
        dict[str, Any],
        About(
            "Option of the method; in a chain METHOD.NAME=VALUE; repeatable.",
            flag="--set",
            metavar="NAME=VALUE",
            planned=True,
        ),
    ] = field(default_factory=dict)
    precision: Annotated[
        str | None,
        About(
            "Precision of weights and arithmetic; int4 quantizes the decoder's weights. "
            "Default: what the device prefers, or fp32.",
            choices=("fp32", "fp16", "int4"),
            planned=True,
        ),
    ] = None
    block: Annotated[
        int | None,
        About(
            "Number of weights that share a scale, with int4. Default: 128.", metavar="128|32", planned=True
        ),
    ] = None
    quantize_head: Annotated[
        str | None,
        About(
            "Precision of lm_head, with int4. Default: not quantized.",
            metavar="int8|int4",
            planned=True,
        ),
    ] = None
    quantize_vision: Annotated[
        str | None,
        About(
            "Precision of the vision tower's linear layers, with int4. Default: not quantized.",
            metavar="int8",
            planned=True,
        ),
    ] = None
    calibrate: Annotated[
        str | Path | None,
        About(
            'Calibration data for AWQ, with int4: lines of {"image": …, "prompt": …}. '
            "Default: none, rounding to nearest.",
            metavar="FILE.jsonl",
            local=True,
        ),
    ] = None
    target: Annotated[
        str | None,
        About(
            "Runtime and version that the graphs are for; `fico list targets`. Default: the device's, or portable.",
            planned=True,
        ),
    ] = None
    device: Annotated[
        str | None, About("GPU or Jetson that the bundle is for; `fico list devices`.", planned=True)
    ] = None
    devices: Annotated[
        str | Path | None,
        About(
            "Folder of TOML files with devices of your own. Default: the one that FICO_DEVICES names.",
            metavar="FOLDER",
            planned=True,
            local=True,
        ),
    ] = None
    max_context: Annotated[
        int | None,
        About(
            "Tokens that the KV cache has room for, with trt-* and rtx. Default: 1024, or the model's context.",
            metavar="M",
            planned=True,
        ),
    ] = None
    max_batch: Annotated[
        int,
        About(
            "Number of sequences that the decoder runs together, at most. Default: 1.",
            metavar="B",
            planned=True,
        ),
    ] = 1
    positions: Annotated[
        Literal["compact", "original"] | None,
        About(
            "Position ids of kept tokens. Default: the method's.",
            kind="positions policy",
            choices=("compact", "original"),
        ),
    ] = None
    profile: Annotated[
        tuple[str, ...] | None,
        About(
            "Shape of image to export for, of a model that has several: tiles as ROWSxCOLUMNS, or all; repeatable. "
            "Default: the model's usual one, and all with method none.",
            metavar="RxC",
            planned=True,
        ),
    ] = None
    resolution: Annotated[
        tuple[str, ...] | None,
        About(
            "Height and width in pixels to which images are resized, of a model that sees images of any size; repeatable: "
            "an image takes the one nearest to its own shape. Default: the model's usual square.",
            metavar="HxW",
            planned=True,
        ),
    ] = None
    tiling: Annotated[
        Literal["per-tile", "joint", "split"] | None,
        About(
            "How an image's tiles are reduced: each by itself, all as one, or the first by itself and the others as one. "
            "Default: per-tile.",
            choices=("per-tile", "joint", "split"),
            planned=True,
        ),
    ] = None
    base_keep: Annotated[
        int | None,
        About(
            "Number of visual tokens of K that the first tile keeps. Default: an equal share.",
            metavar="K0",
            planned=True,
        ),
    ] = None
    unpad: Annotated[
        bool,
        About(
            "Leave visual tokens that show padding out, as the model was trained; with method none always.",
            planned=True,
        ),
    ] = False
    newlines: Annotated[
        Literal["drop", "rows", "all"] | None,
        About(
            "Newline vectors that stay: none, one after each row that keeps a token, or all. "
            "Default: drop; rows with --unpad; all with method none.",
            choices=("drop", "rows", "all"),
            planned=True,
        ),
    ] = None
    frames: Annotated[
        int | None,
        About(
            "Number of frames that are taken of a video, of a model that sees videos. Default: no videos.",
            metavar="N",
            planned=True,
        ),
    ] = None
    clip_text: Annotated[
        str | Path | None,
        About(
            "CLIP model that the vision tower comes from, for a method that compares the prompt with the image.",
            metavar="MODEL",
        ),
    ] = None
    revision: Annotated[str | None, About("Branch, tag or commit of a hub model.", planned=True)] = None
    out: Annotated[
        str | Path | None,
        About(
            "Folder of the bundle. Default: engines/<model>-<method>-k<K>-<precision>.",
            short="-o",
            local=True,
        ),
    ] = None
    overwrite: Annotated[bool, About("Replace a bundle that is there.", local=True)] = False
    copy_weights: Annotated[
        bool,
        About(
            "Write all weights into the bundle, instead of linking the checkpoint's files that fit.",
            local=True,
        ),
    ] = False
    verify: Annotated[
        bool, About("Compare every graph with torch before the bundle gets its name.", local=True)
    ] = True

    @classmethod
    def of(cls, given: Mapping[str, Any], place: str = "the request") -> Self:
        """Check values, by the names of the options; one that is absent or None has its default.

        Args:
            given: the values.
            place: what they were read from, for errors.

        Raises:
            ConfigError: a name is unknown, or a value is of another kind.
        """
        from fico_export import tables

        values = {name: value for name, value in given.items() if value is not None}
        for option in options(cls):
            text = values.get(option.name)
            if get_origin(option.type) is tuple and isinstance(text, str):
                values[option.name] = (text,)
            if option.about.choices and isinstance(text, str) and text not in option.about.choices:
                raise unknown_name(option.about.kind or option.name, text, option.about.choices)
        return tables.checked(cls, values, place)

    def repeated(self) -> dict[str, Any]:
        """What makes the same bundle again elsewhere: the options that were given, without those of one machine."""
        taken = [o for o in options(type(self)) if not o.about.local]
        given = {o.name: getattr(self, o.name) for o in taken}
        defaults = {o.name: o.default for o in taken if o.name not in _BY_POSITION}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in given.items()
            if value not in (None, {}) and value != defaults.get(name)
        }


@dataclass(frozen=True)
class Option:
    """A field of the record: its name, the type of its values without None, its default, and what it is."""

    name: str
    type: Any
    default: Any
    about: About

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return self.about.flag or f"--{self.name.replace('_', '-')}"


def options(record: type[ExportOptions] = ExportOptions) -> tuple[Option, ...]:
    """The options of a record, in order."""
    hints = get_type_hints(record, include_extras=True)
    found = []
    for field_ in dataclasses.fields(record):
        if get_origin(hints[field_.name]) is not Annotated:  # what a recipe says beside the options
            continue
        kind, about = get_args(hints[field_.name])
        kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        default = None if field_.default is dataclasses.MISSING else field_.default
        found.append(Option(field_.name, kinds[0], default, about))
    return tuple(found)


_BY_POSITION = ("model", "keep")


def signature(own: dict[str, Any]) -> inspect.Signature:
    """The signature of a function that takes the options as keywords, model and keep by position too, and its `own`."""
    kinds = {
        "model": inspect.Parameter.POSITIONAL_OR_KEYWORD,
        "keep": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    }
    taken = {option.name: option.default for option in options()} | own
    return inspect.Signature(
        [
            inspect.Parameter(name, kinds.get(name, inspect.Parameter.KEYWORD_ONLY), default=default)
            for name, default in taken.items()
        ]
    )


def documented(text: str) -> str:
    """A docstring with a line for each option where it says `{options}`."""
    lines = [f"{option.name}: {option.about.text}" for option in options() if option.name not in _BY_POSITION]
    return text.replace("{options}", "\n        ".join(lines))
