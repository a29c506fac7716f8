"""Backends: one file (or folder) each, which ends in a `BACKEND`. The folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from fico_export.bundle.manifest import Manifest
from fico_export.errors import unknown_name
from fico_export.runtime.backends.base import Backend

AUTO = "auto"


@cache
def all_backends() -> dict[str, Backend]:
    """Name → backend, those that `auto` prefers first. None of their libraries is imported."""
    modules = {found.name: importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)}
    backends = {name.replace("_", "-"): module.BACKEND for name, module in modules.items() if hasattr(module, "BACKEND")}
    return dict(sorted(backends.items(), key=lambda item: -item[1].priority))


def choose(name: str, folder: Path, manifest: Manifest) -> str:
    """The name of the backend that is to run a bundle here.

    Args:
        name: of a backend; `auto` takes engines where there are any that fit, else the GPU where there is one, else the CPU.
        folder: of the bundle.
        manifest: its manifest.

    Raises:
        ConfigError: no such backend, or one that cannot run this bundle here.
    """
    known = all_backends()
    if name == AUTO:
        return next(each for each, backend in known.items() if backend.runs(folder, manifest))
    if name not in known:
        raise unknown_name("backend", name, [AUTO, *known])
    known[name].require(folder, manifest)
    return name
