"""`scripts/evaluate.py` measures through bundles, says what it measured, and goes on where it was stopped."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fico_export import demo

ROOT = Path(__file__).parents[2]
WEIGHTS = hashlib.sha256((demo.FOLDER / "model.safetensors").read_bytes()).hexdigest()[:8]


@pytest.fixture(scope="module")
def evaluated(demo_full, demo_reduced, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    (out / WEIGHTS).mkdir()
    (out / WEIGHTS / "none-all").symlink_to(demo_full)
    (out / WEIGHTS / "ficoco-v-64").symlink_to(demo_reduced)
    page = out / "page.md"
    page.write_text("before\n<!-- made by scripts/evaluate.py -->\nold\n<!-- end -->\nafter\n")
    return out, page, run(out, page)


def run(out, page):
    arguments = ["--methods", "ficoco-v", "--keep", "64", "--scenes", "6", "--processes", "1"]
    command = [sys.executable, "scripts/evaluate.py", *arguments, "--out", str(out), "--docs", str(page)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def test_a_row_a_policy_and_two_of_guessing(evaluated):
    out, _, _ = evaluated
    results = json.loads((out / "results.json").read_text())

    assert [(r["method"], r["keep"], r["policy"]) for r in results] == [
        ("none", None, "original"),
        ("none", None, "no picture"),
        ("none", None, "wrong picture"),
        ("ficoco-v", 64, "compact"),
        ("ficoco-v", 64, "original"),
    ]
    asked = {kind: len(hits) for kind, hits in results[0]["right"].items()}
    assert all({kind: len(hits) for kind, hits in r["right"].items()} == asked for r in results)
    assert asked["background"] == 6
    right = [sum(map(sum, r["right"].values())) for r in results]
    assert right[0] > right[1]
    assert right[0] > right[2]


def test_the_page_gets_table_and_plot_and_keeps_the_rest(evaluated):
    out, page, result = evaluated
    text = page.read_text()

    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    for shown in (text, result.stdout):
        tables = shown.split("\n\n")
        assert sum("| ficoco-v |" in table for table in tables) == 4  # two policies, in the mean and by kind
        assert any("| no picture |" in table and "| wrong picture |" in table for table in tables)
    assert (out / "page.png").stat().st_size > 5000
    assert "<svg" in (out / "page.svg").read_text()


def test_it_goes_on_where_it_was_stopped(evaluated):
    out, page, first = evaluated
    (out / WEIGHTS / "ficoco-v-64").unlink()  # what was measured needs no bundle any more

    assert run(out, page).stdout == first.stdout
