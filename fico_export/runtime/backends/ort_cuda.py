"""ONNX Runtime on an NVIDIA GPU. A node's time there is when it was queued, not when it ran."""

from __future__ import annotations

from pathlib import Path

from fico_export.bundle.manifest import Manifest
from fico_export.devices import gpu
from fico_export.errors import ConfigError, FicoError
from fico_export.runtime.backends.base import Backend, Graphs

_PROVIDER = "CUDAExecutionProvider"


def _problem(folder: Path, manifest: Manifest) -> FicoError | None:
    missing = _missing()
    if missing is None:
        return None
    return ConfigError(
        f"backend ort-cuda cannot run: {missing}", fix="give --backend ort-cpu, or see `fico doctor`"
    )


def _missing() -> str | None:
    """What this machine lacks."""
    import onnxruntime as ort

    if _PROVIDER not in ort.get_available_providers():
        return "this ONNX Runtime is a CPU build (install onnxruntime-gpu)"
    if gpu.count() == 0:
        return "no NVIDIA GPU and driver found"
    return None


def _open(folder: Path, manifest: Manifest, threads: int) -> Graphs:
    from fico_export.runtime.backends.ort.graphs import OrtGraphs

    return OrtGraphs(folder, manifest, _PROVIDER, threads)


BACKEND = Backend(
    name="ort-cuda",
    summary="ONNX Runtime on an NVIDIA GPU",
    rank=1,
    problem=_problem,
    open=_open,
    on_gpu=True,
)
