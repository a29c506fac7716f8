"""Which part of the vision graph its time goes to, by ONNX Runtime's own profile and the names that the exporter gives nodes."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fico_export.errors import EngineError

PARTS = ("tower", "reducer", "projector", "other")
_PREFIXES = {"vision_tower.": "tower", "reduce.": "reducer", "multi_modal_projector": "projector"}
_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """A node and the milliseconds that it takes in the median of the runs.

    A fused node carries the name of one of its parts, or a new one.
    """

    name: str
    operator: str
    ms: float


def node_times(path: Path) -> list[NodeTime]:
    """The nodes of a profile that ONNX Runtime wrote, in the order in which they ran first.

    Raises:
        EngineError: the file is damaged, or tells of no node.
    """
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    try:
        for event in json.loads(path.read_text(encoding="utf-8")):
            if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
                node = event["name"].removesuffix(_KERNEL), event["args"]["op_name"]
                found[node].append(event["dur"] / 1000)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"{path.name} is no profile of ONNX Runtime: {error!r}", mend="measure again"
        ) from error
    if not found:
        raise EngineError(f"{path.name} tells of no node", mend="measure again, with a graph that is run")
    return [NodeTime(*node, statistics.median(ms)) for node, ms in found.items()]


def part_of(name: str) -> str | None:
    """The part of the vision graph that a node belongs to: nodes are named after the module that they come from."""
    return next((part for prefix, part in _PREFIXES.items() if name.startswith(prefix)), None)


def shares(nodes: Sequence[NodeTime]) -> dict[str, float]:
    """Of the time of all nodes, by part.

    A node that the runtime made itself, such as a transposition, belongs to the part that the named nodes before and after
    it belong to; where these differ, to `other`.
    """
    known = [part_of(node.name) for node in nodes]
    before, after = _filled(known), _filled(known[::-1])[::-1]
    parts = dict.fromkeys(PARTS, 0.0)
    for node, first, last in zip(nodes, before, after, strict=True):
        agreed = first if first == last or last is None else last if first is None else None
        parts[agreed or "other"] += node.ms
    total = sum(parts.values())
    return {part: ms / total for part, ms in parts.items()} if total else {}


def _filled(parts: Sequence[str | None]) -> list[str | None]:
    """Each unknown part as the known one before it."""
    filled: list[str | None] = []
    for part in parts:
        filled.append(part or (filled[-1] if filled else None))
    return filled
