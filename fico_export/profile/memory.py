"""Most memory that this process has taken, on the host and on the GPU."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fico_export.devices.nvidia import DRIVER

_PEAK_ONLY = "5"  # what /proc/self/clear_refs takes to forget the peak (proc(5))


def host_peak_bytes(root: Path = Path("/")) -> int | None:
    """Most resident memory of this process since it began or the peak was forgotten, files that it has mapped included."""
    with suppress(OSError):
        match = re.search(
            r"^VmHWM:\s+(\d+) kB$", (root / "proc/self/status").read_text(encoding="utf-8"), re.MULTILINE
        )
        return int(match[1]) * 1024 if match else None
    return None


def forget_host_peak(root: Path = Path("/")) -> bool:
    """Begin the peak anew from what is resident; False where the system does not offer it."""
    try:
        (root / "proc/self/clear_refs").write_text(_PEAK_ONLY, encoding="ascii")
    except OSError:
        return False
    return True


class DevicePeak:
    """Most GPU memory that this process takes, where others take and give none meanwhile.

    The driver tells what is free on the whole GPU, so what is free is asked before and after this process works alone, and
    the differences are summed. ONNX Runtime keeps what it has once taken: the sum after a step is its peak.

    Args:
        free_bytes: asks the driver; None where there is none.
    """

    def __init__(self, free_bytes: Callable[[], int] | None) -> None:
        self._free_bytes = free_bytes
        self._taken = 0
        self._peak = 0

    @property
    def bytes(self) -> int | None:
        """The peak so far; None without a driver."""
        return self._peak if self._free_bytes else None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While this process works alone."""
        if self._free_bytes is None:
            yield
            return
        before = self._free_bytes()
        yield
        self._taken += before - self._free_bytes()
        self._peak = max(self._peak, self._taken)


def cuda_free_bytes() -> Callable[[], int] | None:
    """What asks the CUDA driver how much of the first GPU's memory is free; None where there is no GPU."""
    try:
        cuda: Any = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    context = ctypes.c_void_p()
    # The context that the CUDA runtime shares with everything in this process.
    if cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0):
        return None

    def ask() -> int:
        free, total, previous = ctypes.c_size_t(0), ctypes.c_size_t(0), ctypes.c_void_p()
        cuda.cuCtxPushCurrent_v2(context)
        cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(previous))
        return free.value

    return ask
