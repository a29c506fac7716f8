"""ONNX Runtime on an NVIDIA GPU. A node's time there is when it was queued, not when it ran."""

from __future__ import annotations

from pathlib import Path

from fico_export.bundle.manifest import Manifest
from fico_export.devices import gpu, targets
from fico_export.errors import ConfigError
from fico_export.runtime.backends.base import Backend, Graphs

_PROVIDER = "CUDAExecutionProvider"


def _fits(manifest: Manifest) -> bool:
    backends = targets.get(manifest.target).backends
    return not backends or "ort-cuda" in backends


def _problem() -> str | None:
    """Why it cannot run here."""
    import onnxruntime as ort

    if _PROVIDER not in ort.get_available_providers():
        return "this ONNX Runtime is a CPU build (install onnxruntime-gpu)"
    if gpu.count() == 0:
        return "no NVIDIA GPU and driver found"
    return None


def _require(folder: Path, manifest: Manifest) -> None:
    if not _fits(manifest):
        target = targets.get(manifest.target)
        raise ConfigError(
            f"backend ort-cuda does not run a bundle for target {target.name}",
            fix=f"give --backend {target.backends[0]}, or export with --target {targets.DEFAULT}",
        )
    if (problem := _problem()) is not None:
        raise ConfigError(
            f"backend ort-cuda cannot run: {problem}", fix="give --backend ort-cpu, or see `fico doctor`"
        )


def _open(folder: Path, manifest: Manifest, threads: int) -> Graphs:
    from fico_export.runtime.backends.ort.graphs import OrtGraphs

    return OrtGraphs(folder, manifest, _PROVIDER, threads)


BACKEND = Backend(
    summary="ONNX Runtime on an NVIDIA GPU",
    priority=1,
    on_gpu=True,
    runs=lambda folder, manifest: _fits(manifest) and _problem() is None,
    require=_require,
    open=_open,
)
