"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fico_export.errors import ConfigError

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; the rest on stderr.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]
DevicesOption = Annotated[
    Path | None,
    typer.Option(
        "--devices",
        metavar="FOLDER",
        help="TOML files with devices of your own. Default: the folder that FICO_DEVICES names.",
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
            f"{flag} {text!r} is not a whole number", mend=f"{flag} K, such as {flag} 64"
        ) from error


def as_settings(pairs: list[str]) -> dict[str, str]:
    """What `--set NAME=VALUE` gives, by name.

    Raises:
        ConfigError: one has no value.
    """
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--set {pair!r} has no value", mend="--set NAME=VALUE, such as --set lam=0.5")
    return {name.strip(): value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}
