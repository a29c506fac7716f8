"""docs/robustness.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "robustness.md"


def test_every_line_of_the_table_names_tests_that_exist():
    rows = [
        line
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and "`tests/" in line
    ]
    named = [re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", line) for line in rows]

    assert len(rows) > 100
    assert all(named)
    for file, test in {pair for pairs in named for pair in pairs}:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{file}::{test}"


def test_every_line_of_the_table_has_three_cells_and_a_test():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for line in lines:
        assert len(re.split(r"(?<!\\)\|", line)) == 5, line
        assert "`tests/" in line or "kind of fault" in line, line
