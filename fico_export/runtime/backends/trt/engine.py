"""TensorRT and TensorRT-RTX engines: loaded from their files, and the contexts that run them. One code path for both.

The libraries' differences from 10.3 to 11 and RTX 1.7 are met by asking for what is there (`hasattr`), in this file alone.
"""

from __future__ import annotations

import importlib
import mmap
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from fico_export.bundle.engine_check import Host, Shape, this_platform
from fico_export.devices import gpu, nvidia
from fico_export.errors import ConfigError, EngineError
from fico_export.runtime.backends.trt import cuda
from fico_export.runtime.backends.trt.profiles import Profile, choose_profile

CUDA_GRAPH = "FICO_CUDA_GRAPH"
_DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


def cuda_graphs_wanted() -> bool:
    """Whether decode steps are captured; FICO_CUDA_GRAPH=0 switches it off, to compare.

    Raises:
        ConfigError: it is set to something else than 0 or 1.
    """
    value = os.environ.get(CUDA_GRAPH, "1")
    if value not in ("0", "1"):
        raise ConfigError(f"{CUDA_GRAPH} is {value!r}", fix=f"set {CUDA_GRAPH}=0 or =1, or unset it")
    return value == "1"


def library(backend: str) -> Any:
    """The module of a backend's library.

    Raises:
        ConfigError: it is not installed.
    """
    of = nvidia.of_backend(backend)
    name = of.runtime
    try:
        return importlib.import_module(name)
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # its wheels raise either where a shared library is missing
        raise ConfigError(
            f"backend {backend} cannot run: {name} cannot be imported: {error}",
            fix=f"on Jetson: {nvidia.JETPACK}; elsewhere {of.install}"
            if of == nvidia.TENSORRT
            else of.install,
        ) from error


def host(backend: str) -> Host:
    """This machine, as engines see it.

    Raises:
        ConfigError: the library or cuda-bindings is not installed.
        EngineError: there is no GPU.
    """
    module, _ = library(backend), cuda.bindings()
    if (here := gpu.find()) is None:
        raise EngineError(
            f"backend {backend} cannot run: CUDA finds no NVIDIA GPU and driver",
            fix="install NVIDIA's driver, see `fico doctor`; or give --backend ort-cpu",
        )
    return Host(
        nvidia.of_backend(backend).runtime,
        module.__version__,
        this_platform(),
        here.compute_capability,
        here.name,
    )


class Device:
    """A library on the GPU: its log, its runtime, and the one stream that everything runs on.

    One stream and no locks: a bundle answers one question at a time.

    Args:
        backend: trt or rtx.

    Raises:
        ConfigError: the library or cuda-bindings is not installed.
        EngineError: CUDA cannot run here.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.trt = library(backend)
        self.stream = cuda.Stream()
        self.log = _make_log(self.trt)
        self.runtime = self.trt.Runtime(self.log)

    def said(self) -> str:
        """What the library has logged as errors since it was last asked."""
        text, self.log.errors = "; ".join(self.log.errors), []
        return text or "it does not say why"


def _make_log(trt: Any) -> Any:
    """A logger that keeps errors, for the library says what is wrong there and returns None or False."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base is known once the library is
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message)

    return Log()


class Engine:
    """A loaded engine.

    Args:
        device: that it is loaded onto.
        path: of its file, which was checked before: a plan is a program.
        fix: the command that builds it again.
        host_code: whether it may bring code of its own, as version-compatible engines do.

    Attributes:
        inputs: and `outputs`: names of its tensors.

    Raises:
        EngineError: the library refuses it, in its own words.
    """

    def __init__(self, device: Device, path: Path, fix: str, *, host_code: bool = False) -> None:
        self.device, self.name, self._fix = device, path.stem, fix
        if host_code:
            device.runtime.engine_host_code_allowed = True
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            # Mapped, not read: a board shares its memory with the GPU, and would hold the plan twice.
            engine = device.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"{device.trt.__name__} cannot load {path.name}: {device.said()}", fix=fix)
        self.raw = engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == device.trt.TensorIOMode.INPUT for name in names}
        self.inputs = [name for name in names if is_input[name]]
        self.outputs = [name for name in names if not is_input[name]]

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Of every tensor, with -1 for a free axis."""
        return {name: tuple(self.raw.get_tensor_shape(name)) for name in (*self.inputs, *self.outputs)}

    @cached_property
    def profiles(self) -> list[Profile]:
        """Of each optimisation profile the least and the largest shape of each input; of a static engine, its one shape."""
        return [
            {name: self._range(name, i) for name in self.inputs}
            for i in range(self.raw.num_optimization_profiles)
        ] or [{name: (self.shapes[name], self.shapes[name]) for name in self.inputs}]

    def _range(self, name: str, profile: int) -> tuple[Shape, Shape]:
        if -1 not in self.shapes[name]:
            return self.shapes[name], self.shapes[name]
        least, _, most = self.raw.get_tensor_profile_shape(name, profile)
        return tuple(least), tuple(most)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Of a tensor.

        Raises:
            EngineError: NumPy has no such type.
        """
        kind = self.raw.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise EngineError(
                f"{name} of the engine {self.name} is {kind}, which NumPy has not", fix=self._fix
            )
        return np.dtype(_DTYPES[kind])

    def input_of(self, output: str) -> str | None:
        """The input whose memory an output is, as the library says; None where it is no input's."""
        if not hasattr(
            self.raw, "get_aliased_input_tensor"
        ):  # before 10.15, which cannot write in place either
            return None
        return cast("str | None", self.raw.get_aliased_input_tensor(output)) or None

    @property
    def scratch_bytes(self) -> int:
        """Memory that a context needs beside tensors and weights."""
        return int(
            self.raw.device_memory_size_v2
            if hasattr(self.raw, "device_memory_size_v2")
            else self.raw.device_memory_size
        )

    @cached_property
    def scratch(self) -> cuda.DeviceMemory | None:
        """Memory that the engine's contexts share, for they run one after the other; each of TensorRT-RTX allocates its own.

        Raises:
            EngineError: the GPU has not so much left.
        """
        if self.device.backend == nvidia.RTX.backend:
            return None
        return cuda.DeviceMemory(self.scratch_bytes)

    def profile_of(self, shapes: Mapping[str, Shape]) -> int:
        """The profile that takes these shapes.

        Raises:
            EngineError: none does.
        """
        profile = choose_profile(self.profiles, shapes)
        if profile is None:
            asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            ranges = "; ".join(
                ", ".join(f"{name} {list(p[name][0])} to {list(p[name][1])}" for name in shapes)
                for p in self.profiles
            )
            raise EngineError(f"the engine {self.name} takes no {asked}; it takes {ranges}", fix=self._fix)
        return profile


class Context:
    """A context of an engine, for one optimisation profile; it shares the engine's weights.

    CUDA graphs: TensorRT leaves capturing to the application, which does so (`capturable`). TensorRT-RTX compiles kernels for the
    shapes it meets while it runs, and captures by itself once they are ready, and again when a shape or an address changes; its
    documentation advises against capturing it from outside, which would need engines built with REQUIRE_USER_ALLOCATION, and
    could hold a fallback kernel for good.

    Args:
        engine: to run.
        profile: of it.
        graphs: whether TensorRT-RTX captures CUDA graphs.

    Raises:
        EngineError: the library cannot make one, such as for lack of memory.
    """

    def __init__(self, engine: Engine, profile: int, *, graphs: bool = False) -> None:
        self._engine, self._device = engine, engine.device
        trt, scratch = self._device.trt, engine.scratch
        if scratch is not None:
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.raw.create_execution_context(strategy)
        elif hasattr(engine.raw, "create_runtime_config") and hasattr(trt, "CudaGraphStrategy"):
            config = engine.raw.create_runtime_config()
            strategies = trt.CudaGraphStrategy
            config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED
            self._config = config  # as long as the context that was made of it
            context = engine.raw.create_execution_context(config)
        else:
            context = engine.raw.create_execution_context()
        if context is None:
            raise EngineError(
                f"no context for the engine {engine.name}: {self._device.said()}",
                fix="free the GPU's memory, give --low-memory, or build with a smaller --workspace",
            )
        self._raw = context
        if scratch is not None:
            context.set_device_memory(scratch.address, scratch.size)
        # The first context has profile 0 from the beginning, a second one has none; a static engine has nothing to choose.
        if any(-1 in shape for shape in engine.shapes.values()):
            self._take(profile)
        self.capturable = scratch is not None

    def _take(self, profile: int) -> None:
        try:
            taken = self._raw.set_optimization_profile_async(profile, self._device.stream.handle)
        except RuntimeError:  # the bindings raise it where other calls return False
            taken = False
        if not taken:
            raise self._failure(f"cannot take profile {profile}")

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """Say how large the inputs are.

        Raises:
            EngineError: the profile does not take them.
        """
        for name, shape in shapes.items():
            if not self._raw.set_input_shape(name, shape):
                raise self._failure(f"does not take {name} {list(shape)}")

    def shape(self, name: str) -> Shape:
        """Of a tensor, after the inputs' are set.

        Raises:
            EngineError: it depends on values, which no graph of a bundle should.
        """
        shape = tuple(self._raw.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise self._failure(f"cannot tell the shape of {name}")
        return shape

    def bind(self, name: str, memory: cuda.Staged | int) -> None:
        """Say where a tensor is: an address on the device, or staged memory, of which the engine takes the side it wants.

        Raises:
            EngineError: the library refuses the address.
        """
        if isinstance(memory, cuda.Staged):
            on_host = self._engine.raw.get_tensor_location(name) == self._device.trt.TensorLocation.HOST
            # Its value is read when work is enqueued, so that a captured graph would keep the first one.
            self.capturable = self.capturable and not on_host
            memory = memory.host.address if on_host else memory.device.address
        if not self._raw.set_tensor_address(name, memory):
            raise self._failure(f"does not take the address of {name}")

    def enqueue(self) -> None:
        """Run, on the device's stream.

        Raises:
            EngineError: the library could not.
        """
        if not self._raw.execute_async_v3(self._device.stream.handle):
            raise self._failure("failed")

    def _failure(self, what: str) -> EngineError:
        return EngineError(
            f"the engine {self._engine.name} {what}: {self._device.said()}",
            fix="free the GPU's memory, or build the engines again with `fico build`",
        )
