"""TensorRT engines, which `fico build` makes; and what TensorRT-RTX's have alike with them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fico_export.bundle.manifest import Manifest
from fico_export.devices.nvidia import TENSORRT, Library
from fico_export.errors import FicoError
from fico_export.runtime.backends.base import Backend, Graphs


def of_library(library: Library, rank: int) -> Backend:
    """The backend that runs a library's engines."""
    return Backend(
        name=library.backend,
        summary=f"{library.name} engines, which `fico build` makes",
        rank=rank,
        problem=partial(_problem, library.backend),
        open=partial(_open, library.backend),
        engines_of=library.runtime,
        on_gpu=True,
    )


def _problem(name: str, folder: Path, manifest: Manifest) -> FicoError | None:
    from fico_export.runtime.backends.trt.engines import fitting_build

    try:
        fitting_build(folder, manifest, name)
    except FicoError as error:
        return error
    return None


def _open(name: str, folder: Path, manifest: Manifest, threads: int) -> Graphs:
    from fico_export.runtime.backends.trt.engines import Engines

    return Engines(folder, manifest, name, threads)


BACKEND = of_library(TENSORRT, rank=3)
