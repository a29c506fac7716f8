"""`fico report`: one HTML page of all that is known about bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fico_export.cli.console import StageProgress, human_bytes, print_json, put
from fico_export.cli.images import opened
from fico_export.cli.options import (
    BackendOption,
    CheckpointNowOption,
    ClipNowOption,
    DebugOption,
    JsonOption,
)


def command(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE…", help="Folders of bundles.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.html", help="HTML page to write.", show_default=False)
    ],
    image: Annotated[
        list[str] | None,
        typer.Option("--image", "-i", metavar="FILE|-", help="Image to show what is kept of it; repeatable."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Question to ask, for a method that reads it.")
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            "--profile",
            metavar="FILE.json",
            help="Measurement by `fico profile`; repeatable. Default: those in the bundles.",
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option("--evaluation", metavar="results.json", help="Results of scripts/evaluate.py."),
    ] = None,
    model: CheckpointNowOption = None,
    clip_text: ClipNowOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write one self-contained page: latency, memory, graphs, environment, and what is kept of images."""
    from fico_export.api import report

    with StageProgress() as progress:
        report(
            bundles,
            out,
            images=opened(image),
            prompt=prompt,
            profiles=profile or [],
            evaluation=evaluation,
            model=model,
            clip_text=clip_text,
            backend=backend,
            progress=progress,
        )
    size = out.stat().st_size
    if as_json:
        print_json({"out": str(out), "bytes": size, "bundles": [str(bundle) for bundle in bundles]})
    else:
        put(f"{out}: {human_bytes(size)}, open it in a browser")
