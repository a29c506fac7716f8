"""Long measurements in cells that are kept one by one, so that a run goes on where it was stopped.

Not a script: `evaluate.py` and `bench_matrix.py` keep their results with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import fico_export
from fico_export.bundle.output import anything, written_file


def bar() -> Progress:
    """A progress bar on stderr with the time left."""
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def kept(path: Path) -> Any | None:
    """What was kept of a cell; None where there is nothing, or nothing whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep(path: Path, content: Any) -> None:
    """Keep a cell: written aside and renamed, so that what has its name is whole."""
    with written_file(path, ours=anything) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def exported(bundle: Path, model: str, keep: int | None, method: str, **options: Any) -> Path:
    """A bundle, made where it is not there yet; not compared with torch, for it is the runtime that is measured.

    Raises:
        ConfigError: the method cannot have this budget, or the precision is not one of the target's.
    """
    if bundle.exists():
        return bundle
    return fico_export.export(model, keep, method=method, out=bundle, verify=False, **options)
