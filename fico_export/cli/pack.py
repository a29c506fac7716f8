"""`fico pack`: a bundle as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fico_export.cli.console import StageProgress, human_bytes, print_json, put
from fico_export.cli.options import BundleArgument, DebugOption, JsonOption

if TYPE_CHECKING:
    from fico_export.bundle.archive import Packed


def command(
    bundle: BundleArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE.tar", help="Archive to write. Default: the bundle's name, beside it."
        ),
    ] = None,
    with_engines: Annotated[
        bool,
        typer.Option(
            "--with-engines", help="Pack the engines of `fico build` too, for machines of the same kind."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an archive that is there.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Pack a bundle into one tar: links become content, and every file is hashed on its way."""
    from fico_export.bundle import archive

    with StageProgress() as progress:
        packed = archive.pack(bundle, out, with_engines=with_engines, overwrite=overwrite, progress=progress)
    report(packed, as_json=as_json, next_command=f"fico unpack {packed.path.name}, where you carried it to")


def report(packed: Packed, *, as_json: bool, next_command: str) -> None:
    """What was packed or unpacked, for a reader or a program."""
    if as_json:
        print_json(
            {
                "path": str(packed.path),
                "files": packed.files,
                "bytes": packed.size,
                "sha256": packed.sha256,
                "engines": list(packed.engines),
            }
        )
        return
    engines = f", engines for {', '.join(packed.engines)}" if packed.engines else ""
    put(f"{packed.path}  {packed.files} files, {human_bytes(packed.size)}{engines}")
    whose = "the manifest, which lists all others" if packed.path.is_dir() else "the archive"
    put(f"SHA-256 of {whose}: {packed.sha256}")
    put(f"next: {next_command}")
