"""`fico lint`: what a target's parser would refuse in a graph."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fico_export.cli.console import print_json, put
from fico_export.cli.options import DebugOption, JsonOption


def command(
    graph: Annotated[
        Path,
        typer.Argument(
            metavar="GRAPH.onnx|BUNDLE", help="An ONNX file, or the folder of a bundle.", show_default=False
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Target to check against; `fico list targets`. Default: the bundle's own, or portable.",
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Name every node that a target's parser would refuse, the version that takes it, and the fix."""
    from fico_export.bundle.manifest import Manifest
    from fico_export.devices import targets

    if graph.suffix == ".onnx":
        paths = [graph]
    else:
        manifest = Manifest.load(graph)
        paths = [graph / g.file for g in manifest.graphs.values()]
        target = target or manifest.target
    wanted = targets.get(target or targets.DEFAULT)

    from fico_export.exporter import lint

    taken = wanted.beside(quantized=True)
    found = {str(path): lint.lint(lint.read(path), wanted, also=taken) for path in paths}
    passed = not any(found.values())
    if as_json:
        graphs = {path: [asdict(v) for v in violations] for path, violations in found.items()}
        print_json({"target": wanted.name, "passed": passed, "graphs": graphs})
    else:
        for path, violations in found.items():
            put(f"{path}: {len(violations) or 'nothing'} that {wanted.name} refuses")
            for violation in violations:
                put(f"  {violation}\n    hint: {violation.fix}")
    if not passed:
        raise typer.Exit(1)
