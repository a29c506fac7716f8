"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
