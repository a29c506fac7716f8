"""What a build will take of memory and disk, and whether there is as much."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fico_export.build.jobs import Job
from fico_export.bundle import files
from fico_export.devices import machine
from fico_export.devices.memory import available_bytes
from fico_export.devices.nvidia import RTX, TENSORRT, Runtime
from fico_export.errors import ConfigError

# Host memory of a worker over the weights of its graph. Measured with TensorRT-RTX 1.7 on graphs of 0.6 and 3.6 GB (docs/build.md);
# TensorRT's library of kernels alone takes 1.75 GB of host memory (NVIDIA/TensorRT issue 4493), and what follows is an estimate.
_BASE_BYTES: dict[str, float] = {RTX.runtime: 0.7e9, TENSORRT.runtime: 2e9}
_PER_WEIGHT_BYTE = 3.1
_PLAN_PER_WEIGHT_BYTE = 1.1
_PLAN_BYTES = 32 * 2**20  # kernels for some compute capabilities


def memory_bytes(jobs: Sequence[Job], runtime: Runtime) -> int:
    """Most host memory that building takes: engines are made one after another, so that of the largest."""
    largest = max((job.graph.weight_bytes for job in jobs), default=0)
    return int(_BASE_BYTES[runtime] + _PER_WEIGHT_BYTE * largest)


def disk_bytes(jobs: Sequence[Job]) -> int:
    """What the engines take at most; each of two profiles may have weights of its own."""
    return sum(
        int(_PLAN_PER_WEIGHT_BYTE * len(job.profiles) * job.graph.weight_bytes) + _PLAN_BYTES for job in jobs
    )


def require_room(jobs: Sequence[Job], runtime: Runtime, folder: Path) -> None:
    """Refuse a build for which memory, with what is free of swap, or the disk does not suffice.

    Raises:
        ConfigError: memory does not.
        DiskError: the disk does not.
    """
    needed, available = memory_bytes(jobs, runtime), available_bytes()
    swap = machine.memory(Path("/")).get("SwapFree", 0)
    if available is not None and needed > available + swap:
        largest = max(jobs, key=lambda job: job.graph.weight_bytes).name
        raise ConfigError(
            f"building {largest} takes about {needed / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are free, and "
            f"{swap / 1e9:.1f} GB of swap",
            fix="add swap (`fico doctor`), stop what else runs, build the other graphs alone with --graph, or take a "
            "smaller --precision or a machine with more memory",
        )
    files.require_space(
        folder,
        disk_bytes(jobs),
        what="the engines need",
        fix="free some space on the bundle's disk, or build fewer graphs with --graph",
    )
