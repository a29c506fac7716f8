"""CUDA GPUs of this machine, asked of the driver itself: no package is needed, and no memory of it is taken."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fico_export.devices import machine
from fico_export.devices.nvidia import DRIVER

_MAJOR, _MINOR = 75, 76  # of CUdevice_attribute
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU by name, its compute capability such as 8.7, and the version of its driver."""

    name: str
    compute_capability: str
    driver: str


def count() -> int:
    """GPUs that the NVIDIA driver offers; 0 without a driver."""
    library, found = _driver(), ctypes.c_int(0)
    if library is None or library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(found)):
        return 0
    return found.value


def find(library: Any = None) -> Gpu | None:
    """The GPU with number 0, or None where there is none or no driver.

    Args:
        library: the driver's; by default the one that is installed.
    """
    library = library or _driver()
    if library is None:
        return None
    device, major, minor, version = (ctypes.c_int(0) for _ in range(4))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    failed = (
        library.cuInit(0)
        or library.cuDeviceGet(ctypes.byref(device), 0)
        or library.cuDeviceGetName(name, _NAME_BYTES, device)
        or library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        or library.cuDriverGetVersion(ctypes.byref(version))
    )
    if failed:
        return None
    cuda = (
        f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"  # what Orin's driver has for a version
    )
    driver = machine.driver(Path("/")) or cuda
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", driver)


def _driver() -> Any:
    try:
        return ctypes.CDLL(DRIVER)
    except OSError:
        return None
