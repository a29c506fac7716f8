"""`fico unpack`: a bundle out of the file that `fico pack` made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fico_export.cli import pack
from fico_export.cli.console import StageProgress
from fico_export.cli.options import DebugOption, JsonOption


def command(
    archive: Annotated[
        Path, typer.Argument(metavar="FILE.tar", help="Archive that `fico pack` made.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the bundle. Default: its name, here."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Unpack a bundle, whole and checked against its manifest, or not at all."""
    from fico_export.bundle.unpack import unpack

    with StageProgress() as progress:
        unpacked = unpack(archive, out, overwrite=overwrite, progress=progress)
    pack.report(
        unpacked, as_json=as_json, next_command=f'fico run {unpacked.path} --image PICTURE --prompt "…"'
    )
