"""The README's table of support and docs/jetson.md say what was shown or computed, and no more."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import what_fits
import write_support

from fico_export.cli.main import app, export_app
from fico_export.devices import catalog, targets
from fico_export.errors import ConfigError

ROOT = Path(__file__).parents[2]
DATA = write_support.DATA.read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")


def test_the_readme_has_the_table_that_the_evidence_gives():
    readme = write_support.README.read_text(encoding="utf-8")

    assert write_support.written(readme, write_support.table(DATA)) == readme, (
        "run python scripts/write_support.py"
    )
    assert write_support.table(DATA) in readme
    for name in targets.names():
        assert f"| `{name}` |" in readme


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('{ form = "TensorRT", level = "planned" }', '{ form = "TensorRT", level = "run" }', ConfigError),
        ('level = "linted"', 'level = "built"', ValueError),
        ('level = "built"', 'level = "run"', ValueError),
        ("test_one_picture", "test_no_picture", ConfigError),
        ('["trt-11"]', '["trt-12"]', ValueError),
    ],
)  # fmt: skip
def test_no_claim_goes_above_its_evidence(old, new, error):
    assert old in DATA
    with pytest.raises(error):
        write_support.rows(DATA.replace(old, new))


def test_the_guide_has_the_table_that_is_computed():
    assert "\n".join(what_fits.table()) in GUIDE, "run python scripts/what_fits.py"


def test_the_guide_names_every_jetson_and_its_target():
    for device in catalog.load().values():
        if device.jetpack and device.name != "agx-orin-industrial":
            assert f"`{device.name}`" in GUIDE
            assert f"`{device.target}`" in GUIDE


def test_the_commands_of_the_guide_are_commands():
    """They are parsed, not run: what they do, the commands' own tests do."""
    blocks = re.findall(r"```(?:console|sh)\n(.*?)```", GUIDE, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    ours = [line for line in lines if line.startswith(("fico ", "fico-export "))]
    assert len(ours) >= 5
    for line in ours:
        name, *words = shlex.split(line)
        if name == "fico-export":
            command = typer.main.get_command(export_app)
            recipe = words[words.index("--recipe") + 1]
            assert (ROOT / recipe).is_file()
        else:
            command = typer.main.get_command(app).commands[words.pop(0)]
        command.make_context(name, words)
