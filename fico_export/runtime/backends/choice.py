"""Which backend runs a bundle here."""

from __future__ import annotations

import logging
from pathlib import Path

from fico_export.bundle.engine_check import builds_of
from fico_export.bundle.manifest import Manifest
from fico_export.devices import targets
from fico_export.errors import ConfigError, FicoError
from fico_export.runtime.backends import AUTO, get, names
from fico_export.runtime.backends.base import Backend

_log = logging.getLogger(__name__)


def choose(name: str, folder: Path, manifest: Manifest) -> Backend:
    """The backend that is to run a bundle here.

    Args:
        name: of a backend; `auto` takes engines where there are any that fit, else the GPU where there is one, else the CPU.
        folder: of the bundle.
        manifest: its manifest.

    Raises:
        FicoError: no such backend, or why it cannot run this bundle here.
    """
    if name == AUTO:
        return _best(folder, manifest)
    backend = get(name)
    if (problem := _problem(backend, folder, manifest)) is not None:
        raise problem
    return backend


def _best(folder: Path, manifest: Manifest) -> Backend:
    """The first in rank that can run a bundle; where engines are there and left aside, the log says why."""
    ranked = sorted(map(get, names()), key=lambda backend: -backend.rank)
    for backend in ranked:
        if not _offered(backend, manifest) or not _is_there(backend, folder, manifest):
            continue
        if (problem := backend.problem(folder, manifest)) is None:
            return backend
        if backend.engines_of is not None:
            _log.warning("the engines for %s are not used: %s; %s", backend.name, problem.what, problem.fix)
    return ranked[-1]


def _problem(backend: Backend, folder: Path, manifest: Manifest) -> FicoError | None:
    """Why a backend cannot run a bundle here; None where it can."""
    if backend.engines_of is None and not _offered(backend, manifest):
        target = targets.get(manifest.target)
        return ConfigError(
            f"backend {backend.name} does not run a bundle for target {target.name}",
            fix=f"give --backend {target.backends[0]}, or export with --target {targets.DEFAULT}",
        )
    return backend.problem(folder, manifest)


def _is_there(backend: Backend, folder: Path, manifest: Manifest) -> bool:
    """Whether a bundle holds what the backend needs of it: graphs it always has."""
    if backend.engines_of is None:
        return True
    return manifest.cache_rows is not None and bool(builds_of(folder, backend.engines_of)[0])


def _offered(backend: Backend, manifest: Manifest) -> bool:
    """Whether a bundle's target is one that the backend runs."""
    backends = targets.get(manifest.target).backends
    return not backends or backend.name in backends
