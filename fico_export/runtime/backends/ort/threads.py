"""How many threads this process can keep busy."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_threads() -> int:
    """Physical cores that this process may use; at most what its container's quota pays for.

    Matrix products gain nothing from a core's second thread, and lose much where threads outnumber what they may use.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = [_read(_CPUS / f"cpu{cpu}/topology/thread_siblings_list") for cpu in sorted(cpus)]
    return max(1, min(physical_cores(siblings), quota(_read(_QUOTA)) or len(cpus)))


def physical_cores(siblings: list[str]) -> int:
    """Cores that hold these CPUs, from the list of siblings of each (`0,64` or `0-1`); an unknown one is its own core."""
    known = [s for s in siblings if s]
    return len(set(known)) + len(siblings) - len(known)


def quota(limit: str) -> int | None:
    """Whole CPUs that a cgroup's `cpu.max` allows (`200000 100000` microseconds are 2); None where it sets no limit."""
    share, _, period = limit.partition(" ")
    if not share.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return max(1, math.ceil(int(share) / int(period)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
