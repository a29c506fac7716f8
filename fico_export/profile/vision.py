"""Which part of the vision graph its time goes to, by the profile that ONNX Runtime writes of it."""

from __future__ import annotations

from pathlib import Path

from fico_export.logs.read import read_logs
from fico_export.logs.stages import attribute

_PARTS = {"patch embedding": "tower", "vision tower": "tower", "reducer": "reducer", "projector": "projector"}
OTHER = "other"


def shares(path: Path) -> dict[str, float]:
    """Of the time of all nodes, by part: tower, reducer, projector, and other for what is in none of them or cannot be told.

    Raises:
        LogError: the file is damaged, or no run was profiled.
    """
    (profile,) = read_logs([path]).profiles
    found = attribute(profile)
    parts = dict.fromkeys([*_PARTS.values(), OTHER], 0.0)
    for stage, ms in found.stages.items():
        parts[_PARTS.get(stage, OTHER)] += ms
    parts[OTHER] += found.unattributed_ms
    return {part: ms / found.total_ms for part, ms in parts.items()} if found.total_ms else {}
