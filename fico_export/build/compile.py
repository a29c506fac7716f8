"""One graph → one engine, in this process: the same calls for TensorRT 10.3 … 11.x and for TensorRT-RTX.

Types are those of the graph: the network is strongly typed, which TensorRT 10 must be told, 11 always is, and TensorRT-RTX
knows no other.
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fico_export.build.phases import Phases
from fico_export.bundle.engines import Options, Sizes
from fico_export.devices.nvidia import RTX, Runtime
from fico_export.errors import BuildError
from fico_export.tables import Record

# TensorRT-RTX 1.7 logs it as an error of its own at every start, and goes on.
_NOISE = "Thread context has not been set"
# TensorRT-RTX 1.7 says so of 3 heads of 64 channels, as the demo's, where a profile is of one position alone.
_NO_KERNEL = "not supported by a dedicated kernel"


class Task(Record):
    """An engine to be made.

    Attributes:
        runtime: the library that builds.
        graph: the .onnx file, its weights beside it.
        profiles: for each optimisation profile the sizes of each free axis.
        options: the builder's.
        compute_capabilities: that TensorRT-RTX builds for; TensorRT builds for the GPU of this machine.
        timing_cache: of an earlier build; not for TensorRT-RTX, where the calls for it do nothing since 1.2.
    """

    runtime: Runtime
    graph: Path
    profiles: list[dict[str, Sizes]]
    options: Options = Options()
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Compiled:
    """An engine.

    Attributes:
        plan: TensorRT's IHostMemory.
        parse_seconds: of the graph.
        build_seconds: of the engine.
        timing_cache: what the builder measured; None where it keeps none.
    """

    plan: Any
    parse_seconds: float
    build_seconds: float
    timing_cache: bytes | None


def compile_engine(task: Task, on_progress: Callable[[float], None] | None = None) -> Compiled:
    """Parse a graph and build its engine.

    Args:
        task: what to make.
        on_progress: told the part of the work that is done, in [0, 1], which never falls.

    Raises:
        BuildError: the parser or the builder refused, in TensorRT's words and with the node's name.
        ModuleNotFoundError: the library or Polygraphy is not installed.
    """
    trt = importlib.import_module(task.runtime)
    log = _log(task.runtime)
    log.errors.clear()
    name = task.graph.name
    began = time.perf_counter()
    builder = trt.Builder(log)
    # TensorRT 11 and TensorRT-RTX have the flag without a need of it.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(task.graph)):
        problems = "; ".join(_words(parser.get_error(i)) for i in range(parser.num_errors))
        raise BuildError(
            f"{name}: the parser of {task.runtime} {trt.__version__} refused it: {problems or _said(log)}",
            fix="`fico lint` names what a target refuses, and what to do; or export for the target that you build for",
        )
    parsed = time.perf_counter()
    config = _config(trt, task, builder, network, on_progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(
            f"{name}: {task.runtime} {trt.__version__} could not build it: {_said(log)}",
            fix=_fix(_said(log), len(task.profiles)),
        )
    built = time.perf_counter()
    measured = None if task.runtime == RTX.runtime else bytes(config.get_timing_cache().serialize())
    return Compiled(plan, parsed - began, built - parsed, measured)


def _config(
    trt: Any, task: Task, builder: Any, network: Any, on_progress: Callable[[float], None] | None
) -> Any:
    """Polygraphy's: it knows what the configuration of each version has."""
    from polygraphy import config as polygraphy_config

    # Read when its TensorRT modules are imported; POLYGRAPHY_USE_TENSORRT_RTX would set it for a whole shell.
    polygraphy_config.USE_TENSORRT_RTX = task.runtime == RTX.runtime
    from polygraphy.backend.trt import CreateConfig, Profile
    from polygraphy.logger import G_LOGGER

    profiles = []
    for sizes in task.profiles:
        profile = Profile()
        for value in (network.get_input(i) for i in range(network.num_inputs)):
            if -1 in value.shape:
                profile.add(value.name, *_shapes(value, sizes))
        profiles.append(profile)
    options = task.options
    given: dict[str, Any] = {
        "profiles": profiles or None,
        "builder_optimization_level": options.optimization_level,
        "max_aux_streams": options.auxiliary_streams,
        "progress_monitor": _monitor(task.runtime)(on_progress) if on_progress else None,
    }
    if options.workspace_bytes is not None:
        given["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace_bytes}
    if task.runtime == RTX.runtime:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        wanted = [tuple(map(int, c.split("."))) for c in task.compute_capabilities]
        create = CreateConfigRTX(compute_capabilities=wanted or None, **given)
    else:
        if options.hardware_compatibility != "none":
            level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper(), None)
            if level is None:
                raise BuildError(
                    f"TensorRT {trt.__version__} knows no hardware compatibility {options.hardware_compatibility}",
                    fix="--hardware-compatibility ampere_plus, or none",
                )
            given["hardware_compatibility_level"] = level
        cache_file = str(task.timing_cache) if task.timing_cache else None
        create = CreateConfig(
            version_compatible=options.version_compatible, load_timing_cache=cache_file, **given
        )
    with warnings.catch_warnings(), G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        # It makes a timing cache for TensorRT-RTX too, which warns that it does nothing with it.
        warnings.simplefilter("ignore", DeprecationWarning)
        config = create(builder, network)
    # What is FP32 in a graph is so for a reason, such as scores that tokens are chosen by; TF32, which TensorRT would take, has 10
    # bits of fraction. Polygraphy clears it for TensorRT alone.
    config.clear_flag(trt.BuilderFlag.TF32)
    return config


def _shapes(value: Any, sizes: Mapping[str, Sizes]) -> list[tuple[int, ...]]:
    """The least, likeliest and largest shape of an input."""
    shape = list(value.shape)
    each = [sizes[value.get_dimension_name(i)] if n == -1 else (n, n, n) for i, n in enumerate(shape)]
    return list(zip(*each, strict=True))


def _fix(said: str, profiles: int) -> str:
    """What helps against a refusal of the builder, as far as its words tell."""
    if _NO_KERNEL in said and profiles > 1:
        return "--profiles 1: for the attention of this decoder, TensorRT has no kernel that takes a single position alone"
    return "where memory ran out: --low-memory, or more swap; else report it with these words and the graph"


def _words(error: Any) -> str:
    """What the parser said of a node."""
    return f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}"


def _said(log: Any) -> str:
    return "; ".join(log.errors) or "it did not say why"


@cache
def _log(runtime: Runtime) -> Any:
    """One logger a process: a library writes to the first that it was given. Keeps what is wrong, prints nothing."""
    trt = importlib.import_module(runtime)

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR and _NOISE not in message:
                self.errors.append(message)

    return Log()


@cache
def _monitor(runtime: Runtime) -> Any:
    trt = importlib.import_module(runtime)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self, on_progress: Callable[[float], None]) -> None:
            super().__init__()
            self.phases = Phases(on_progress)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases.step(phase_name, step)
            return True  # false would stop it; we end the process

        def phase_finish(self, phase_name: str) -> None:
            self.phases.finish(phase_name)

    return Monitor
