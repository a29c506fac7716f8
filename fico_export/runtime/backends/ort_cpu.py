"""ONNX Runtime on the CPU: runs every bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fico_export.bundle.manifest import Manifest
from fico_export.runtime.backends.base import Backend, Graphs, TimedSession

_PROVIDER = "CPUExecutionProvider"


def _open(folder: Path, manifest: Manifest, threads: int) -> Graphs:
    from fico_export.runtime.backends.ort.graphs import OrtGraphs

    return OrtGraphs(folder, manifest, _PROVIDER, threads)


def _host_bytes(manifest: Manifest, names: Sequence[str]) -> int:
    from fico_export.runtime.backends.ort.memory import needed_bytes

    return needed_bytes(manifest, names)


def _open_timed(graph: Path, threads: int, profile_to: Path) -> TimedSession:
    from fico_export.runtime.backends.ort.sessions import open_session

    session: TimedSession = open_session(graph, _PROVIDER, threads, profile_to)
    return session


BACKEND = Backend(
    name="ort-cpu",
    summary="ONNX Runtime on the CPU",
    rank=0,
    problem=lambda folder, manifest: None,
    open=_open,
    host_bytes=_host_bytes,
    open_timed=_open_timed,
)
