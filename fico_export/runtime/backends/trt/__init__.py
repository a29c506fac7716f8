"""TensorRT engines, which `fico build` makes; and what TensorRT-RTX's have alike with them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fico_export.bundle.manifest import Manifest
from fico_export.runtime.backends.base import Backend, Graphs


def of_library(name: str, summary: str, priority: int) -> Backend:
    """The backend that runs the engines of one of NVIDIA's libraries."""
    return Backend(
        summary=summary,
        priority=priority,
        on_gpu=True,
        runs=partial(_runs, name),
        require=lambda folder, manifest: None,  # opening says what is missing, and how to build it
        open=partial(_open, name),
    )


def _runs(name: str, folder: Path, manifest: Manifest) -> bool:
    from fico_export.runtime.backends.trt.engines import fit_here

    return fit_here(folder, manifest, name)


def _open(name: str, folder: Path, manifest: Manifest, threads: int) -> Graphs:
    from fico_export.runtime.backends.trt.engines import Engines

    return Engines(folder, manifest, name)


BACKEND = of_library("trt", "TensorRT engines, which `fico build` makes", priority=3)
