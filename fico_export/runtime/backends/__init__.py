"""What runs a bundle. The folder is the registry.

Every file `<name>.py` here, or folder `<name>/`, that ends in `BACKEND = Backend(...)` is a backend called `<name>`, with `_` written
`-`. Nothing else needs an edit: the new file is listed, offered, chosen by `auto` and run. `base.py` holds what a backend is made of,
`choice.py` which of them runs a bundle.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fico_export.errors import unknown_name

if TYPE_CHECKING:
    from fico_export.runtime.backends.base import Backend

AUTO = "auto"
_RECORD = re.compile(r"^BACKEND\b", re.MULTILINE)


def names() -> list[str]:
    """All backends' names, sorted. Reads the folder, imports nothing of it."""
    return sorted(_modules())


def get(name: str) -> Backend:
    """The backend called `name`. What it runs on is not imported before it is used.

    Raises:
        ConfigError: no such backend; the message lists the known and suggests the nearest.
    """
    if name not in _modules():
        raise unknown_name("backend", name, [AUTO, *names()])
    backend: Backend = importlib.import_module(f"{__name__}.{_modules()[name]}").BACKEND
    return backend


def _modules() -> dict[str, str]:
    """Name → module of each backend."""
    return _read(tuple(__path__))


@cache
def _read(folders: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        found |= {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}
        found |= {path.parent.name: path for path in folder.glob("*/__init__.py")}
    return {
        module.replace("_", "-"): module
        for module, path in found.items()
        if _RECORD.search(path.read_text(encoding="utf-8"))
    }
