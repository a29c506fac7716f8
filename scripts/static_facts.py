#!/usr/bin/env python3
"""Facts about the code that can be counted: lengths, import circles, private names, files to touch for an addition.

    python scripts/static_facts.py              # print them
    python scripts/static_facts.py --check      # and fail where one is broken

Needs `pip install -e .[dev]`. What an addition takes is tried on a copy of the package (`additions.py`).
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import additions
import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fico_export"
FILE_LINES = 400
BODY_LINES = 60
# Names with an underscore that their libraries document.
DOCUMENTED = {"_exit", "_replace", "_asdict", "_fields", "_make"}


def long_files(package: Path) -> list[str]:
    """Files of more lines than a reader takes in."""
    counted = {path: text.count("\n") for path, text in sources(package)}
    return [f"{name(path, package)}: {lines} lines" for path, lines in counted.items() if lines > FILE_LINES]


def long_functions(package: Path) -> list[str]:
    """Functions whose body, after the docstring, is too long."""
    return [
        f"{name(path, package)}:{node.lineno}: {node.name} has {lines} lines"
        for path, text in sources(package)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := body(node)) > BODY_LINES
    ]


def body(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its first statement to its last."""
    first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
    return (node.body[-1].end_lineno or 0) - first.lineno + 1


def circles(package: Path) -> list[str]:
    """A circle of imports that run, those within functions too."""
    return circle(package, annotations=False)


def circle(package: Path, *, annotations: bool) -> list[str]:
    """The first circle that there is; with `annotations` one may go through imports under TYPE_CHECKING."""
    sys.path.insert(0, str(package.parent))
    try:
        graph = grimp.build_graph(package.name, exclude_type_checking_imports=not annotations, cache_dir=None)
    finally:
        sys.path.remove(str(package.parent))
    imports = {module: sorted(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return [" ← ".join(error.args[1])]
    return []


def private_names(package: Path) -> list[str]:
    """Names that begin with an underscore, imported from a module, or reached in an object of one, that is not their own."""
    found = []
    for path, text in sources(package):
        tree = ast.parse(text)
        own = set(defined(tree))
        for node in ast.walk(tree):
            used: list[str] = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package.name:
                used = [part for part in (node.module or "").split(".") if private(part)]
                used += [alias.name for alias in node.names if private(alias.name)]
            elif isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own | DOCUMENTED:
                used = [node.attr]
            found += [f"{name(path, package)}:{getattr(node, 'lineno', 0)}: {each}" for each in used]
    return found


def private(word: str) -> bool:
    """Whether a name is its module's own business."""
    return word.startswith("_") and not word.startswith("__")


def defined(tree: ast.Module) -> Iterator[str]:
    """What a module defines: functions, classes, variables, attributes that it sets."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def sources(package: Path) -> Iterator[tuple[Path, str]]:
    """Every file of the package with its text."""
    for path in sorted(package.rglob("*.py")):
        yield path, path.read_text(encoding="utf-8")


def name(path: Path, package: Path) -> str:
    """A file's name from the package on."""
    return str(path.relative_to(package.parent))


FACTS: dict[str, Callable[[Path], list[str]]] = {
    f"no file over {FILE_LINES} lines": long_files,
    f"no function body over {BODY_LINES} lines": long_functions,
    "no import circle": circles,
    "no private name across modules": private_names,
    **{f"one file to touch for {kind}": additions.breaks(kind) for kind in additions.KINDS},
}  # fmt: skip


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--check", action="store_true", help="exit 1 where a fact is broken")
    arguments = parser.parse_args()
    broken = False
    for fact, breaks in FACTS.items():
        found = breaks(PACKAGE)
        broken |= bool(found)
        print(f"{'no ' if found else 'yes'}  {fact}", *(f"       {each}" for each in found), sep="\n")
    for each in circle(PACKAGE, annotations=True):
        print(f"note a circle that only annotations close, which harms no import: {each}")
    sys.exit(1 if broken and arguments.check else 0)


if __name__ == "__main__":
    main()
