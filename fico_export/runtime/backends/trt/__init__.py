"""TensorRT engines, which `fico build` makes; and what TensorRT-RTX's have alike with them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fico_export.bundle.manifest import Manifest
from fico_export.errors import FicoError
from fico_export.runtime.backends.base import Backend, Graphs, Runtime


def of_library(name: str, library: Runtime, summary: str, rank: int) -> Backend:
    """The backend that runs the engines of one of NVIDIA's libraries."""
    return Backend(
        name=name,
        summary=summary,
        rank=rank,
        problem=partial(_problem, name),
        open=partial(_open, name),
        engines_of=library,
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


BACKEND = of_library("trt", "tensorrt", "TensorRT engines, which `fico build` makes", rank=3)
