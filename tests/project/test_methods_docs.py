"""docs/methods.md is what the code says; docs/add-a-reducer.md does what it says."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import hollow
import pytest
import write_methods
from cli_tools import command_line
from exhaustive import exhaustive

from fico_export import reducers
from fico_export.cli.listing import describe_method
from fico_export.exporter.cost import cost
from fico_export.reducers.base.options import describe

ROOT = Path(__file__).parents[2]
METHODS = ROOT / "docs" / "methods.md"
PASTE = ROOT / "docs" / "add-a-reducer.md"


def test_the_page_of_methods_says_what_the_code_says():
    text = METHODS.read_text(encoding="utf-8")
    costs = write_methods.costs_on(text)

    assert sorted(costs) == reducers.names(), "run python scripts/write_methods.py"
    assert all(len(cells) == 5 and cells[2] != "–" for cells in costs.values())
    assert write_methods.page(costs) == text, "run python scripts/write_methods.py --text-only"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_costs_on_the_page_are_those_of_the_graphs(tmp_path):
    """Of one method, the cheapest to trace; the script does the same with the others."""
    model = hollow.llava_7b(tmp_path)
    about = {n: describe_method(n) for n in reducers.names()}
    name = next(n for n, a in about.items() if a["site"] == "projector output" and {*a["cues"]} <= {"valid"})
    whole = cost(write_methods.traced(model, model.plan("none", None, {}), "vision_encoder"))
    found = write_methods.cells(model, model.plan(name, write_methods.KEEP, {}), whole)

    assert write_methods.costs_on(METHODS.read_text(encoding="utf-8"))[name] == found
    assert 380e9 < whole.flops < 400e9  # ViT-L/14-336 without its last layer, and the projector


@pytest.mark.parametrize("method", reducers.names())
def test_every_method_says_what_a_reader_needs(method):
    about = describe_method(method)

    assert about["source"]
    assert about["filter"]
    for option in describe(reducers.get(method).options):
        assert option.says, option.name
        assert option.source, f"{option.name}: where its default comes from, in parentheses at the end"
        assert option.default != "None", f"{option.name}: what stands in, after `; default`"
        assert option.range or option.type not in ("int", "float"), option.name
        if option.range:
            assert option.range not in option.says


@pytest.mark.parametrize("whole", [exhaustive(True), False], ids=["exported and run", "listed and tested"])
def test_the_example_can_be_pasted_and_the_lines_of_the_page_run(whole, tmp_path):
    """Its tests export it too, alone; of the demo a bundle is exported and run in the exhaustive run."""
    page = PASTE.read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    path = re.search(r"Save this as `(\S+)`", page)[1]
    lines = re.findall(r"^\$ (.*)$", page, re.MULTILINE)
    assert example.count("\n") < 60
    assert [line.split()[0] for line in lines] == ["fico", "pytest", "fico-export", "fico"]
    for part in ("fico_export", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / path).write_text(example, encoding="utf-8")

    outputs = [run(line, tmp_path) for line in (lines if whole else lines[:2])]

    name = Path(path).stem
    assert f"{name}  " in outputs[0]
    assert "--set share=…  float 0 … 1, default 0.5: " in outputs[0]
    assert re.search(r"\d passed", outputs[1])
    assert (tmp_path / "engines" / f"demo-{name}-k64-fp32" / "manifest.json").exists() == whole


def run(line: str, folder: Path) -> str:
    """What a command of the page prints, with the package that is in the folder."""
    name, *arguments = shlex.split(line)
    command = command_line(name, *arguments)
    if name == "pytest":
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout
