#!/usr/bin/env python3
"""Write the README's table of support from docs/support.toml, the targets and the devices.

    python scripts/write_support.py

A claim is held to its evidence: `Cell` refuses a level above what a target can have been shown to do, or without a test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from fico_export import tables
from fico_export.build.library import USUAL_CAPABILITIES
from fico_export.devices import catalog, targets
from fico_export.devices.targets import Target
from fico_export.tables import Record

ROOT = Path(__file__).parents[1]
DATA, README = ROOT / "docs" / "support.toml", ROOT / "README.md"
COLUMNS = {"vision": "vision graph", "decoder": "decoder", "int4": "INT4", "runtime": "runtime"}
Level = Literal["run", "built", "linted", "planned"]


class Cell(Record):
    """A claim, and the tests that show it: `file::test`."""

    level: Level
    form: str = ""
    by: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _shown_by_tests(self) -> Cell:
        if (self.level == "planned") == bool(self.by):
            raise ValueError(f"{self.level} by {', '.join(self.by) or 'no test'}")
        for test in self.by:
            file, _, name = test.partition("::")
            if f"\ndef {name}(" not in (ROOT / file).read_text(encoding="utf-8"):
                raise ValueError(f"there is no {test}")
        return self


class Row(Record):
    """What is claimed of a target."""

    vision: list[Cell]
    decoder: list[Cell]
    int4: list[Cell]
    runtime: list[Cell]


def rows(text: str) -> dict[str, Row]:
    """What is claimed of every target.

    Raises:
        ConfigError: a claim has no evidence.
        ValueError: a claim is above what can have been shown, or a target is missing.
    """
    content = tables.parse(text, DATA.name)
    if content.keys() != set(targets.names()):
        raise ValueError(f"{DATA.name} and the targets differ: {content.keys() ^ set(targets.names())}")
    found = {}
    for name, claims in content.items():
        found[name] = tables.checked(Row, claims, f"{DATA.name}: {name}")
        for column in COLUMNS:
            for cell in getattr(found[name], column):
                if cell.level not in possible(targets.get(name), cell.form):
                    raise ValueError(f"{name}: {column} cannot be {cell.level}")
    return found


def possible(target: Target, form: str) -> tuple[Level, ...]:
    """Levels that the tests can show of a target without a GPU; ONNX Runtime runs the graphs of all."""
    if target.parser is None or form == "ONNX Runtime, CPU":
        return ("run", "planned")
    return ("built", "linted", "planned") if target.parser.runtime == "rtx" else ("linted", "planned")


def place(target: Target) -> str:
    """Devices and releases of JetPack that a target is for."""
    if target.parser is None:
        return "any machine" if not target.backends else "any CPU"
    if target.parser.runtime == "rtx":
        return f"GPUs of compute capability {', '.join(USUAL_CAPABILITIES)}"
    # A device of 7.2 is not one of 7.2.2: that has to be said of it.
    boards = [d.name for d in catalog.load().values() if set(d.jetpack) & set(target.jetpack)]
    on = f"JetPack {', '.join(target.jetpack)}{': ' if boards else ''}{_named(boards)}"
    return f"desktop GPUs; {on}" if target.name == "trt-11" else on


def _named(devices: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in devices)


def table(text: str) -> str:
    """The table, as Markdown."""
    lines = [
        f"| target | devices | {' | '.join(COLUMNS.values())} |",
        f"|---|---|{'---|' * len(COLUMNS)}",
    ]
    for name, row in rows(text).items():
        cells = (", ".join(_cell(cell) for cell in getattr(row, column)) for column in COLUMNS)
        lines.append(f"| `{name}` | {place(targets.get(name))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    level = f"**{cell.level}**" if cell.level != "planned" else "planned"
    return f"{cell.form}: {level}" if cell.form else level


def written(readme: str, made: str) -> str:
    """The README with the table in its section."""
    return re.sub(
        r"(<!-- support -->\n).*?(\n<!-- /support -->)", lambda m: m[1] + made + m[2], readme, flags=re.DOTALL
    )


if __name__ == "__main__":
    made = table(DATA.read_text(encoding="utf-8"))
    README.write_text(written(README.read_text(encoding="utf-8"), made), encoding="utf-8")
    print(made)
