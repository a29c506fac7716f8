"""NVIDIA's CUDA runtime through cuda-bindings: memory on the device and pinned on the host, one stream, captured graphs."""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fico_export.errors import ConfigError, EngineError
from fico_export.runtime.backends.trt.placement import Copy2D

_log = logging.getLogger(__name__)

NO_BINDINGS = "cuda-bindings is not installed"
INSTALL = "pip install cuda-bindings, of the driver's CUDA: 'cuda-bindings<13' for JetPack 6 and other drivers of CUDA 12"
_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"
_OLD_DRIVER = "cudaErrorInsufficientDriver"


def bindings() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise ConfigError(f"{NO_BINDINGS}: {error}", fix=INSTALL) from error
    return runtime


def call(name: str, *arguments: Any) -> Any:
    """Call a function of CUDA's runtime; what it returns beside its status: nothing, a value, or several.

    Raises:
        EngineError: its status is not success.
    """
    status, *values = getattr(bindings(), name)(*arguments)
    if status.name != "cudaSuccess":
        raise _failure(name, status)
    return values[0] if len(values) == 1 else values or None


def _failure(name: str, status: Any) -> EngineError:
    _, text = bindings().cudaGetErrorString(status)
    what = f"{name}: {status.name}: {text.decode()}"
    if status.name == _OUT_OF_MEMORY:
        return EngineError(
            what,
            fix="free the GPU's memory, give --low-memory, or export with a smaller --max-context or --precision int4",
        )
    if status.name == _OLD_DRIVER:
        return EngineError(
            what, fix=f"update NVIDIA's driver, or install the bindings of its CUDA: {INSTALL}"
        )
    return EngineError(what, fix="run `fico doctor`; FICO_CUDA_GRAPH=0 runs without CUDA graphs")


def free_bytes() -> tuple[int, bool]:
    """Free memory of the GPU, and whether it is the machine's own memory, as on Jetson.

    Raises:
        EngineError: CUDA cannot tell.
    """
    free, _ = call("cudaMemGetInfo")
    return int(free), bool(_attribute("cudaDevAttrIntegrated"))


def _attribute(name: str) -> int:
    return int(call("cudaDeviceGetAttribute", getattr(bindings().cudaDeviceAttr, name), 0))


class DeviceMemory:
    """Memory on the GPU, freed with this object; `address` is a multiple of 256.

    Args:
        size: in bytes.

    Raises:
        EngineError: there is not so much left.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = int(call("cudaMalloc", max(size, 1)))
        weakref.finalize(self, _quietly, bindings().cudaFree, self.address)


class PinnedMemory:
    """Memory of the host that the GPU reads and writes by itself, freed with this object.

    Args:
        size: in bytes.

    Attributes:
        bytes: a view of it.

    Raises:
        EngineError: there is not so much left.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = int(call("cudaHostAlloc", max(size, 1), 0))
        raw = (ctypes.c_uint8 * size).from_address(self.address)
        self.bytes: npt.NDArray[np.uint8] = np.ctypeslib.as_array(raw)
        weakref.finalize(self, _quietly, bindings().cudaFreeHost, self.address)


class Staged:
    """A tensor's memory on the device with its double on the host; it grows, and never shrinks.

    The addresses stay as long as it does not grow, as a captured graph needs.
    """

    def __init__(self, size: int) -> None:
        self.device, self.host = DeviceMemory(size), PinnedMemory(size)

    def grow(self, size: int) -> None:
        """Have room for `size` bytes; what was there is lost if it had not."""
        if size > self.host.size:
            self.device, self.host = DeviceMemory(size), PinnedMemory(size)

    def write(self, array: npt.NDArray[Any]) -> None:
        """Put an array on the host's side."""
        np.copyto(self.host.bytes[: array.nbytes], np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def read(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """A copy of the host's side: the next step writes there."""
        size = int(np.prod(shape)) * dtype.itemsize
        return self.host.bytes[:size].view(dtype).reshape(shape).copy()


class Stream:
    """A stream that is not the default one, on which graphs cannot be captured.

    Raises:
        EngineError: CUDA cannot make one.
    """

    def __init__(self) -> None:
        flags = bindings().cudaStreamNonBlocking
        self._stream = call("cudaStreamCreateWithFlags", flags)
        self._kinds = bindings().cudaMemcpyKind
        self.handle = int(self._stream)
        weakref.finalize(self, _quietly, bindings().cudaStreamDestroy, self._stream)

    def to_device(self, staged: Staged, size: int) -> None:
        """Copy the first `size` bytes of the host's side; it must not change before the stream has done so."""
        kind = self._kinds.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", staged.device.address, staged.host.address, size, kind, self._stream)

    def to_host(self, staged: Staged, size: int) -> None:
        """Copy the first `size` bytes of the device's side."""
        kind = self._kinds.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", staged.host.address, staged.device.address, size, kind, self._stream)

    def place(self, to: DeviceMemory, source: DeviceMemory, copies: list[Copy2D]) -> None:
        """Do strided copies from one buffer of the device into another."""
        kind = self._kinds.cudaMemcpyDeviceToDevice
        for c in copies:
            call(
                "cudaMemcpy2DAsync",
                to.address + c.to,
                c.to_pitch,
                source.address + c.source,
                c.source_pitch,
                c.width,
                c.height,
                kind,
                self._stream,
            )

    def clear(self, memory: DeviceMemory, start: int = 0, size: int | None = None) -> None:
        """Fill memory, or so many bytes of it, with zeros."""
        size = memory.size if size is None else size
        call("cudaMemsetAsync", memory.address + start, 0, size, self._stream)

    def wait(self) -> None:
        """Until all is done.

        Raises:
            EngineError: something that ran on the stream failed.
        """
        call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> CapturedGraph | None:
        """Record what `work` puts on the stream, without running it.

        Returns:
            The graph; None where the work cannot be captured, which is logged.
        """
        mode = bindings().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", self._stream, mode)
        failed: EngineError | None = None
        try:
            work()
        except EngineError as error:
            failed = error
        finally:  # a capture that went wrong is ended too, else the stream stays in it
            status, graph = bindings().cudaStreamEndCapture(self._stream)
        if status.name != "cudaSuccess":
            failed = failed or _failure("cudaStreamEndCapture", status)
        else:
            try:
                if failed is None:
                    return CapturedGraph(graph)
            except EngineError as error:  # such as for lack of memory
                failed = error
            finally:
                _quietly(bindings().cudaGraphDestroy, graph)
        bindings().cudaGetLastError()  # clears it, else the next call reports it again
        _log.warning("no CUDA graph of the decode step: %s", failed.what if failed else status.name)
        return None

    def launch(self, graph: CapturedGraph) -> None:
        """Run a captured graph."""
        call("cudaGraphLaunch", graph.executable, self._stream)


class CapturedGraph:
    """Work that is launched as one: the addresses it uses are fixed, what lies there is not.

    Raises:
        EngineError: CUDA cannot instantiate it.
    """

    def __init__(self, graph: Any) -> None:
        self.executable = call("cudaGraphInstantiate", graph, 0)
        weakref.finalize(self, _quietly, bindings().cudaGraphExecDestroy, self.executable)


def _quietly(function: Callable[[Any], Any], handle: Any) -> None:
    """Give something back; what CUDA says is of no use to one who is done with it."""
    function(handle)
