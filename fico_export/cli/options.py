"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fico_export.errors import ConfigError
from fico_export.runtime import backends


def _backends(incomplete: str) -> list[str]:
    return [name for name in _BACKENDS if name.startswith(incomplete)]


_BACKENDS = (backends.AUTO, *backends.names())
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
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="|".join(_BACKENDS),
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
