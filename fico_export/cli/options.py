"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fico_export import reducers
from fico_export.errors import ConfigError
from fico_export.reducers import DEFAULT


def _methods(incomplete: str) -> list[str]:
    return [name for name in reducers.names() if name.startswith(incomplete)]


def _backends(incomplete: str) -> list[str]:
    return [name for name in BACKENDS if name.startswith(incomplete)]


BACKENDS = ("auto", "ort-cpu", "ort-cuda", "trt", "rtx")
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.", show_default=False)
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout, an error too; all else goes to stderr."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the Python trace of an error.")]
DevicesOption = Annotated[
    Path | None,
    typer.Option(
        "--devices",
        metavar="FOLDER",
        help="Folder of TOML files with devices of your own. Default: the one that FICO_DEVICES names.",
    ),
]
KeepOption = Annotated[
    str | None, typer.Option("--keep", "-k", metavar="K", help="Number of visual tokens to keep.")
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="METHOD[@K,METHOD@K…]",
        autocompletion=_methods,
        help=f"Reduction method, or a chain of them; `fico list methods`. Default: {DEFAULT}, or none without --keep.",
    ),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Option of the method; in a chain METHOD.NAME=VALUE; repeatable."
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32|fp16|int4",
        help="Precision of weights and arithmetic; int4 quantizes the decoder's weights. Default: what the device prefers, or fp32.",
    ),
]
BlockOption = Annotated[
    int | None,
    typer.Option(
        "--block", metavar="128|32", help="Number of weights that share a scale, with int4. Default: 128."
    ),
]
QuantizeHeadOption = Annotated[
    str | None,
    typer.Option(
        "--quantize-head",
        metavar="int8|int4",
        help="Precision of lm_head, with int4. Default: not quantized.",
    ),
]
QuantizeVisionOption = Annotated[
    str | None,
    typer.Option(
        "--quantize-vision",
        metavar="int8",
        help="Precision of the vision tower's linear layers, with int4. Default: not quantized.",
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="|".join(BACKENDS),
        help="Runtime that executes the graphs or engines.",
        autocompletion=_backends,
    ),
]
ThreadsOption = Annotated[int, typer.Option("--threads", help="Number of CPU threads; 0 for one per core.")]
CheckpointNowOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--checkpoint",
        "-m",
        help="Checkpoint that the bundle was made of, where it is now. Default: where the manifest says.",
    ),
]
ClipNowOption = Annotated[
    str | None,
    typer.Option(
        "--clip-text",
        metavar="MODEL",
        help="CLIP model that the bundle's text tower was made of, where it is now. Default: where the manifest says.",
    ),
]


def whole_number(text: str | None, flag: str = "--keep") -> int | None:
    """The number that a flag gives; None where it is not given.

    Raises:
        ConfigError: it is none.
    """
    try:
        return None if text is None else int(text)
    except ValueError as error:
        raise ConfigError(
            f"{flag} {text!r} is not a whole number", fix=f"{flag} K, such as {flag} 64"
        ) from error


def as_settings(pairs: list[str]) -> dict[str, str]:
    """What `--set NAME=VALUE` gives, by name.

    Raises:
        ConfigError: one has no value.
    """
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--set {pair!r} has no value", fix="--set NAME=VALUE, such as --set lam=0.5")
    return {name.strip(): value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}
