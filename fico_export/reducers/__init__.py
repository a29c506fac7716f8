"""Training-free visual-token reducers, one file each. The folder is the registry.

Every file `<name>.py` here that ends in `REDUCER = Reducer(...)` is a method called `<name>`, with `_`
written `-`. Nothing else needs an edit: the new file is listed, exported and property-tested.
`base/` holds what a reducer is made of, `stages/` the shared filter, correlate and compress functions.
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fico_export.errors import unknown_name
from fico_export.options import DEFAULT_METHOD, ExportOptions

if TYPE_CHECKING:
    from fico_export.reducers.base.reducer import Reducer

DEFAULT = DEFAULT_METHOD


def with_method(options: ExportOptions) -> ExportOptions:
    """The options with their method named: that asked for, `none` where all tokens are kept, or the default."""
    chosen = "none" if options.keep is None else DEFAULT
    return options if options.method is not None else replace(options, method=chosen)


def names() -> list[str]:
    """All method names, sorted. Reads the folder, imports nothing."""
    return sorted(p.stem.replace("_", "-") for p in _files())


def summaries() -> dict[str, str]:
    """Method name → first line of its file's docstring. Needs no torch."""
    trees = {p.stem.replace("_", "-"): ast.parse(p.read_text(encoding="utf-8")) for p in _files()}
    return {name: (ast.get_docstring(tree) or "").partition("\n")[0] for name, tree in sorted(trees.items())}


def merges(name: str) -> bool:
    """Whether the method called `name` merges tokens, or only drops them: what its record says of `compress`. Needs no torch."""
    path = Path(__file__).parent / f"{name.replace('-', '_')}.py"
    if not path.is_file():  # of a bundle that another version made
        return False
    calls = (
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    )
    record = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Reducer")
    return any(keyword.arg == "compress" for call in record for keyword in call.keywords)


def get(name: str) -> Reducer[Any]:
    """The method called `name`.

    Raises:
        ConfigError: no such method; the message lists the known and suggests the nearest.
    """
    if name not in names():
        raise unknown_name("method", name, names())
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    reducer: Reducer[Any] = module.REDUCER
    return reducer


def _files() -> list[Path]:
    return [p for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__"]
