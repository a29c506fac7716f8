#!/usr/bin/env python3
"""The table of docs/jetson.md: what `fico plan` says of the models that people ask for, on every Jetson.

python scripts/what_fits.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fico_export.api import open_architecture
from fico_export.devices import catalog
from fico_export.errors import ConfigError
from fico_export.plan import planner
from fico_export.plan.planner import PlanRequest
from fico_export.plan.roofline import Range
from fico_export.reducers import DEFAULT

KEEP, ROWS = 64, 512
MODELS = {
    "Interleave-Qwen-0.5B": "llava-interleave-qwen-0.5b",
    "LLaVA-1.5-7B": "llava-1.5-7b",
    "LLaVA-1.5-13B": "llava-1.5-13b",
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "`--precision fp16`": {"precision": "fp16"},
    "`--precision int4`": {"precision": "int4"},
    "… `--quantize-head int4`": {"precision": "int4", "quantize_head": "int4"},
    "… `--quantize-head int4 --quantize-vision int8`": {
        "precision": "int4",
        "quantize_head": "int4",
        "quantize_vision": "int8",
    },
}
WORDS = {"fits": "fits", "may fit": "may", "does not fit": "no"}


def table() -> list[str]:
    """The lines of the table; what a model cannot be stored as has no line."""
    boards = [
        d for d in catalog.load().values() if d.jetpack and d.name != "agx-orin-industrial"
    ]  # as agx-orin-64gb
    boards.sort(key=lambda d: (d.memory_gb, d.name))
    head: list[str] = []
    lines = []
    for name, alias in MODELS.items():
        model, asked = open_architecture(alias), PlanRequest(method=DEFAULT, keep=KEEP, max_context=ROWS)
        work = planner.count(model, asked)
        for flags, how in PRECISIONS.items():
            try:
                found = [planner.estimate(model, replace(asked, **how), board, work) for board in boards]
            except ConfigError:
                continue
            head = head or [f"{e.device}, {gigabytes(e.room)}" for e in found if e.room]
            verdicts = " | ".join(WORDS[e.verdict] for e in found if e.verdict)
            lines.append(f"| {name} {flags} | {gigabytes(found[0].needed)} | {verdicts} |")
    return [f"| model | needed, GB | {' | '.join(head)} |", f"|---|---|{'---|' * len(boards)}", *lines]


def gigabytes(value: Range) -> str:
    """One number where the ends are one."""
    least, most = f"{value.least / 1e9:.1f}", f"{value.most / 1e9:.1f}"
    return least if least == most else f"{least}–{most}"


if __name__ == "__main__":
    print("\n".join(table()))
