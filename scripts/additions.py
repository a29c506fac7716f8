"""How many files an addition touches: it is made in a copy of the package, by one file, and the package is asked for it.

Not a script: `static_facts.py` counts with it. A file of another folder that lists the members of a kind would need an edit too.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """A kind of part that one file, or one entry of a record, adds.

    Attributes:
        home: the folder or file that is its registry.
        add: adds `made up` to a copy of the package.
        ask: Python that fails where the package does not know it.
        members: names of those that there are, none where nothing can list them.
    """

    home: str
    add: Callable[[Path], None]
    ask: str
    members: Callable[[Path], set[str]] = lambda package: set()


def stems(folder: str) -> Callable[[Path], set[str]]:
    """Names of the parts in a folder."""

    def names(package: Path) -> set[str]:
        files = (package / folder).glob("*.py")
        return {path.stem.replace("_", "-") for path in files if path.stem not in ("__init__", "base")}

    return names


def backends(package: Path) -> set[str]:
    """Names of backends: the files and folders that end in a record."""
    files = [
        *(package / "runtime/backends").glob("*.py"),
        *(package / "runtime/backends").glob("*/__init__.py"),
    ]
    made = [path for path in files if "\nBACKEND = " in path.read_text(encoding="utf-8")]
    return {(p.parent if p.stem == "__init__" else p).stem.replace("_", "-") for p in made}


def writes(file: str, text: str) -> Callable[[Path], None]:
    """Adds a file."""

    def add(package: Path) -> None:
        path = package / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    return add


def add_option(package: Path) -> None:
    """A field of the record."""
    path = package / "options.py"
    before = "    verify: Annotated["
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    field = '    made_up: Annotated[int | None, About("Made up.", planned=True)] = None\n'
    path.write_text(text.replace(before, field + before), encoding="utf-8")


def add_family(package: Path) -> None:
    """The only one: the others take seconds to import."""
    for path in (package / "models" / "families").glob("[!_]*.py"):
        path.unlink()
    text = "from types import SimpleNamespace\n\nFAMILY = SimpleNamespace(aliases={'made-up': 'a/b'}, model_types=('made_up',))\n"
    writes("models/families/made_up.py", text)(package)


def add_form(package: Path) -> None:
    """A form, and a target that has it: a target is data, as a device is."""
    text = "from types import SimpleNamespace\n\nFORM = SimpleNamespace(per_layer=None)\n"
    writes("models/decoders/made_up.py", text)(package)
    targets = package / "devices" / "targets"
    table = (targets / "portable.toml").read_text(encoding="utf-8").replace('"portable"', '"made-up"')
    (targets / "made-up.toml").write_text(f'decoder = "made-up"\n{table}', encoding="utf-8")


OPTION = """
import inspect, pathlib
from typer.testing import CliRunner
from fico_export import api
from fico_export.bundle.recipe import Recipe
from fico_export.cli.main import app, export_app
from fico_export.options import ExportOptions
assert "made_up" in inspect.signature(api.export).parameters
assert ExportOptions.of({"made_up": 3}).repeated()["made_up"] == 3
pathlib.Path("recipe.toml").write_text('description = "-"\\nmodel = "demo"\\nmade_up = 3\\n')
assert Recipe.load(pathlib.Path("recipe.toml")).made_up == 3
for app, line in ((export_app, ["--help"]), (app, ["plan", "--help"])):
    assert "--made-up" in CliRunner().invoke(app, line).output
"""
KINDS: dict[str, Kind] = {
    "an option": Kind("options.py", add_option, OPTION),
    "a backend": Kind(
        "runtime/backends",
        writes("runtime/backends/made_up.py", "from fico_export.runtime.backends import ort_cpu\n\nBACKEND = ort_cpu.BACKEND\n"),
        "from fico_export.runtime.backends import get, names; assert 'made-up' in names(); assert get('made-up').summary",
        backends,
    ),
    "a family": Kind(
        "models/families",
        add_family,
        "from fico_export import models; assert models.aliases() == {'made-up': 'a/b'}",
        stems("models/families"),
    ),
    "a decoder form": Kind(
        "models/decoders",
        add_form,
        "from fico_export.devices import targets; from fico_export.models import decoders; "
        "assert decoders.form(targets.get('made-up').decoder).per_layer is None",
        stems("models/decoders"),
    ),
    "a reducer": Kind(
        "reducers",
        writes("reducers/made_up.py", '"""Made up."""\n'),
        "from fico_export import reducers; assert reducers.summaries()['made-up'] == 'Made up.'",
        stems("reducers"),
    ),
}  # fmt: skip


def breaks(kind: str) -> Callable[[Path], list[str]]:
    """What an addition of a kind touches beside its one file; none where that is all."""

    def found(package: Path) -> list[str]:
        record = KINDS[kind]
        lists = sorted(listing(package, record))
        said = [f"{file} lists those that there are" for file in lists]
        if (problem := unknown(package, record)) is not None:
            said.insert(0, f"what is added to {record.home} alone is not known: {problem}")
        return [*said, f"{1 + len(lists)} files to touch, that one and those that list"] if said else []

    return found


def unknown(package: Path, kind: Kind) -> str | None:
    """Why a copy of the package does not know what was added to it; None where it does."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / package.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "model"))
        kind.add(copy)
        environment = {**os.environ, "PYTHONPATH": name, "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
        asked = [sys.executable, "-c", kind.ask]
        done = subprocess.run(asked, cwd=name, env=environment, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.splitlines() or ["it ended without a word"])[-1]


def listing(package: Path, kind: Kind) -> Iterator[str]:
    """Files outside the kind's home with a tuple, list, set, dict or Literal of two members or more."""
    members = kind.members(package)
    for path in package.rglob("*.py"):
        inside = path.relative_to(package)
        if inside.is_relative_to(kind.home):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(len(members & set(constants(node))) > 1 for node in ast.walk(tree)):
            yield str(inside)


def constants(node: ast.AST) -> Iterator[str]:
    """The texts that stand in a collection."""
    elements: list[ast.expr | None] = []
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        elements = [*node.elts]
    elif isinstance(node, ast.Dict):
        elements = [*node.keys]
    for element in elements:
        if isinstance(element, ast.Constant) and isinstance(element.value, str):
            yield element.value
