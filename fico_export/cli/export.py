"""`fico-export` and `fico export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fico_export.cli.console import StageProgress, human_bytes, print_json, say
from fico_export.cli.flags import export_flags
from fico_export.cli.options import DebugOption, JsonOption
from fico_export.options import ExportOptions


@export_flags()
def command(
    given: dict[str, Any],
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="FILE.toml", help="File of export options; flags given beside it win."
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Export a LLaVA checkpoint to ONNX graphs with its visual tokens reduced to K."""
    if recipe is not None:
        from fico_export.bundle.recipe import Recipe

        given = Recipe.load(recipe).with_flags(given)
    options = ExportOptions.of(given)

    from fico_export.api import export
    from fico_export.bundle.manifest import Manifest

    began = time.perf_counter()
    with StageProgress() as progress:
        folder = export(**vars(options), progress=progress)
    seconds = time.perf_counter() - began
    manifest = Manifest.load(folder)
    size, reduction = sum(f.size for f in manifest.files.values()), manifest.reduction
    linked = sum(f.size for f in manifest.files.values() if f.mtime_ns is not None)
    if as_json:
        print_json(
            {
                "bundle": str(folder),
                "method": reduction.method,
                "visual_tokens": reduction.visual_tokens,
                "keep": reduction.keep,
                "precision": manifest.precision,
                "target": manifest.target,
                "device": manifest.device,
                "size_bytes": size,
                "linked_bytes": linked,
                "seconds": round(seconds, 3),
            }
        )
        return
    kept = f"{human_bytes(size)}, of which {human_bytes(linked)} linked" if linked else human_bytes(size)
    say(f"{folder}: {reduction.visual_tokens} → {reduction.keep} visual tokens, {kept}, {seconds:.1f} s")
    say(f'next: fico run {folder} --image PICTURE --prompt "What is in the picture?"')
