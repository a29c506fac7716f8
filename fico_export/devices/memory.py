"""How much memory this machine can still give, and how to give some back."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

_CGROUP_V1 = Path("sys/fs/cgroup/memory")
_CGROUP_V2 = Path("sys/fs/cgroup")


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that can be taken without swapping, within the limits of this process's control groups.

    Args:
        root: where `proc` and `sys` are.

    Returns:
        Bytes; None where the system does not tell.
    """
    known = [_unused_of_machine(root), *_unused_of_groups(root)]
    return min((n for n in known if n is not None), default=None)


def give_back() -> None:
    """Return to the system what is free in glibc's heaps, for it keeps what a graph's loading or a large step has freed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _unused_of_machine(root: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    return None


def _unused_of_groups(root: Path) -> list[int]:
    """What each control group of this process, and each above it, may still take; those without a limit left out."""
    unused = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers == "":
                mount, limit, usage, cache = (
                    root / _CGROUP_V2,
                    "memory.max",
                    "memory.current",
                    "inactive_file",
                )
            elif "memory" in controllers.split(","):
                mount, limit, usage, cache = (
                    root / _CGROUP_V1,
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                )
            else:
                continue
            own = mount / place.lstrip("/")
            for group in (own, *own.parents):
                with suppress(OSError, ValueError):  # "max" is no number: no limit
                    statistics = dict(
                        entry.split() for entry in (group / "memory.stat").read_text().splitlines()
                    )
                    used = int((group / usage).read_text()) - int(statistics.get(cache, 0))
                    unused.append(max(0, int((group / limit).read_text()) - used))
                if group == mount:
                    break
    return unused
