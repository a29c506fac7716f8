"""Compiles graphs with TensorRT-RTX for GPUs that need not be there.

Not a script: `bench_reducers.py` and the tests compile with it. Needs the `rtx` extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorrt_rtx as trt

CAPABILITIES = ("SM86", "SM89", "SM120")  # Ampere, Ada and Blackwell boards
Sizes = tuple[int, int, int]  # least, likeliest and most


class CompileError(Exception):
    """TensorRT-RTX refused a graph, in its own words."""


class _Log(trt.ILogger):
    """Keeps what is wrong, prints nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)


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
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise CompileError(f"{path.name}: {'; '.join(f'{e.node_name()}: {e.desc()}' for e in errors)}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for i, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    if axes:
        config.add_optimization_profile(_profile(builder, network, axes))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise CompileError(f"{path.name}: {'; '.join(log.errors)}")
    return engine


def _profile(
    builder: trt.Builder, network: trt.INetworkDefinition, axes: Mapping[str, Sizes]
) -> trt.IOptimizationProfile:
    profile = builder.create_optimization_profile()
    for value in (network.get_input(i) for i in range(network.num_inputs)):
        shape = list(value.shape)
        if -1 in shape:
            sizes = [axes[value.get_dimension_name(i)] if n == -1 else (n, n, n) for i, n in enumerate(shape)]
            profile.set_shape(value.name, *zip(*sizes, strict=True))
    return profile
