#!/usr/bin/env python3
"""Measure model × method × K × precision × target × backend, each cell beside `none` of the same model, precision and target.

    python scripts/bench_matrix.py --methods ficoco-v,tome --keeps 64,128 --out engines/matrix       # of the demo
    python scripts/bench_matrix.py --models llava-1.5-7b --precisions fp16,int4 --backends ort-cuda --out engines/matrix

A cell is one `fico profile` of two bundles in alternation. What is done is kept in the output folder; started again, the run
goes on, and a cell that was cut short or failed is done anew. A cell that cannot be, such as a K above N, is kept as refused,
with the reason; engines are built for backends that run them. At the end stand matrix.csv, a line a cell, and matrix.json with all that was measured and where.
Needs `pip install -e .[dev]`. Bundles are made as they are needed and deleted after; --keep-bundles leaves them.
"""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import cells
import typer

from fico_export.bundle.output import anything, written_file
from fico_export.errors import BuildError, ConfigError, FicoError
from fico_export.profile import machine
from fico_export.profile.measure import ProfileRequest, profile

MEASURES = ("ttft", "tpot", "end_to_end")
RATIOS = (*MEASURES, "vision", "prefill", "decode")


@dataclass(frozen=True)
class Cell:
    """What is measured: `none` has no K."""

    model: str
    precision: str
    target: str
    method: str
    keep: int | None
    backend: str

    @property
    def bundle(self) -> str:
        """Name of its bundle."""
        model = Path(self.model).name
        return f"{model}-{self.method}-{self.keep or 'all'}-{self.precision}-{self.target}"

    @property
    def name(self) -> str:
        """Name of what is kept of it."""
        return f"{self.bundle}-{self.backend}"


def main(
    models: Annotated[str, typer.Option(help="`demo`, aliases or folders, comma separated.")] = "demo",
    methods: Annotated[
        str, typer.Option(help="Reducers, comma separated; `none` is a control.")
    ] = "ficoco-v",
    keeps: Annotated[str, typer.Option(help="Budgets K, comma separated.")] = "64,128,192",
    precisions: Annotated[str, typer.Option(help="Comma separated.")] = "fp32",
    targets: Annotated[str, typer.Option(help="Comma separated.")] = "portable",
    backends: Annotated[str, typer.Option(help="Comma separated.")] = "ort-cpu",
    iterations: Annotated[int, typer.Option(help="Answers of each bundle that count.")] = 20,
    warm_up: Annotated[int, typer.Option(help="Answers of each bundle before them.")] = 3,
    new_tokens: Annotated[int, typer.Option(help="Tokens of every answer.")] = 16,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for one per core.")] = 0,
    in_turn: Annotated[bool, typer.Option("--in-turn", help="Load one bundle of a cell at a time.")] = False,
    keep_bundles: Annotated[bool, typer.Option("--keep-bundles", help="Leave the bundles there.")] = False,
    out: Annotated[Path, typer.Option(help="Cells, bundles and tables.")] = Path("engines/matrix"),
) -> None:
    """Measure what is missing, then write the tables."""
    request = ProfileRequest(
        threads=threads, iterations=iterations, warm_up=warm_up, new_tokens=new_tokens, in_turn=in_turn
    )
    wanted = [
        cell
        for model, precision, target in itertools.product(*map(split, (models, precisions, targets)))
        for cell in of_bundle(model, precision, target, split(methods), [*map(int, split(keeps))], split(backends))
    ]  # fmt: skip
    (out / "cells").mkdir(parents=True, exist_ok=True)
    environment = require_same(out / "environment.json", request)
    with cells.bar() as progress:
        task = progress.add_task("cells", total=len(wanted))
        for place, cell in enumerate(wanted):
            progress.update(task, description=cell.name)
            file = out / "cells" / f"{cell.name}.json"
            if "failed" in (cells.kept(file) or {"failed": "never tried"}):
                cells.keep(file, asdict(cell) | measure(cell, request, out / "bundles"))
            progress.advance(task)
            if not keep_bundles:
                clear(out / "bundles", wanted[place + 1 :])
    done = [cells.kept(out / "cells" / f"{cell.name}.json") for cell in wanted]
    cells.keep(out / "matrix.json", {"environment": environment, "cells": done})
    write_csv(out / "matrix.csv", [row(cell) for cell in done])
    print((out / "matrix.csv").read_text(encoding="utf-8"), end="")


def of_bundle(
    model: str, precision: str, target: str, methods: list[str], keeps: list[int], backends: list[str]
) -> Iterator[Cell]:
    """Cells that share a bundle of `none`, those of one bundle together."""
    for method in methods:
        for keep in [None] if method == "none" else keeps:
            for backend in backends:
                yield Cell(model, precision, target, method, keep, backend)


def measure(cell: Cell, request: ProfileRequest, folder: Path) -> dict[str, Any]:
    """A cell's profile, its first bundle `none`; or why there is none."""
    base = Cell(cell.model, cell.precision, cell.target, "none", None, cell.backend)
    try:
        bundles = [made(c, folder) for c in (base, cell)]
        given = ProfileRequest(**{**vars(request), "backend": cell.backend})
        return {"profile": profile(bundles, given).model_dump(mode="json")}
    except ConfigError as error:
        return {"refused": error.what}
    except FicoError as error:  # the others need not wait for it
        return {"failed": error.what}


def made(cell: Cell, folder: Path) -> Path:
    """Its bundle, with engines where it runs on them.

    Raises:
        ConfigError: the bundle or its engines cannot be.
        BuildError: the engines could not be built.
    """
    bundle = cells.exported(
        folder / cell.bundle, cell.model, cell.keep, cell.method, precision=cell.precision, target=cell.target
    )
    if cell.backend in ("trt", "rtx"):
        command = [sys.executable, "-m", "fico_export", "build", bundle, "--target", cell.target, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            said = json.loads(done.stdout or "{}")
            kind = ConfigError if done.returncode == 2 else BuildError
            raise kind(said.get("error", f"fico build {bundle} ended"), fix=said.get("hint", "see above"))
    return bundle


def require_same(path: Path, request: ProfileRequest) -> dict[str, Any]:
    """Where and how the cells are measured: one machine and one way for all that stand in one table."""
    here = machine.describe().model_dump(mode="json")
    now = {"machine": here, "request": {k: v for k, v in vars(request).items() if k not in ("backend",)}}
    before = cells.kept(path)
    if before is None:
        cells.keep(path, now)
        return now
    fixed = {k: v for k, v in here.items() if k != "clocks_mhz"}
    if fixed.items() <= before["machine"].items() and now["request"] == before["request"]:
        return dict(before)
    raise ConfigError(
        f"the cells in {path.parent} were measured on another machine, with other versions or other options: see {path}",
        fix="give the options as they were, or --out another folder",
    )


def clear(folder: Path, left: list[Cell]) -> None:
    """Delete the bundles that no cell which is left needs."""
    needed = {cell.bundle for cell in left}
    needed |= {Cell(c.model, c.precision, c.target, "none", None, "").bundle for c in left}
    for bundle in folder.iterdir() if folder.is_dir() else ():
        if bundle.name not in needed:
            shutil.rmtree(bundle)


def row(cell: dict[str, Any]) -> dict[str, Any]:
    """A line of the table: medians in milliseconds, ratios to `none`, bytes."""
    outcome = next(key for key in ("profile", "refused", "failed") if key in cell)
    line = {k: cell[k] for k in ("model", "method", "keep", "precision", "target", "backend")}
    line |= {"outcome": "measured" if outcome == "profile" else outcome, "reason": ""}
    if outcome != "profile":
        return line | {"reason": cell[outcome]}
    run = cell["profile"]
    own = run["bundles"][1]
    line |= {f"{name}_ms": own[name]["median"] for name in MEASURES if own[name]}
    line |= {f"{stage}_ms": spread["median"] for stage, spread in own["stages"].items()}
    line |= {f"{name}_ratio": run["ratios"][name][1] for name in RATIOS if name in run["ratios"]}
    names = ("tokens_per_second", "reducer_ms", "coverage", "host_peak_bytes", "device_peak_bytes")
    return line | {name: own[name] for name in names} | {"reducer_share": own["vision_parts"].get("reducer")}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """All columns that any row has; written aside and renamed."""
    columns = list(dict.fromkeys(name for line in rows for name in line))
    with (
        written_file(path, ours=anything) as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


if __name__ == "__main__":
    try:
        typer.run(main)
    except FicoError as error:
        sys.exit(f"error: {error.what}\nhint:  {error.fix}")
