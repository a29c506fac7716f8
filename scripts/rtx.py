"""Compiles graphs with TensorRT-RTX for GPUs that need not be there, in this process: `fico build` without a bundle.

Not a script: `bench_reducers.py` and the tests compile with it. Needs the `rtx` extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polygraphy  # noqa: F401  # missing, it is missed here and not amid the work
import tensorrt_rtx as trt

from fico_export.build.compile import Task
from fico_export.build.compile import compile_engine as compile_task
from fico_export.build.library import USUAL_CAPABILITIES as CAPABILITIES
from fico_export.bundle.engines import Sizes
from fico_export.devices.nvidia import RTX
from fico_export.errors import BuildError as CompileError

__all__ = ["CAPABILITIES", "CompileError", "compile_engine"]


def compile_engine(
    path: Path, axes: Mapping[str, Sizes] | None = None, capabilities: tuple[str, ...] = CAPABILITIES
) -> trt.IHostMemory:
    """One engine for all the capabilities.

    Args:
        path: of the .onnx file, its weights beside it.
        axes: name of a free axis → how long it can be.
        capabilities: of the GPUs it is for.

    Raises:
        CompileError: the parser or the compiler refused the graph.
    """
    profiles = [dict(axes)] if axes else []
    return compile_task(
        Task(runtime=RTX.runtime, graph=path, profiles=profiles, compute_capabilities=capabilities)
    ).plan
