"""ONNX Runtime's profiler JSON: a list of events in the form of Chrome's traces, times in microseconds."""

from __future__ import annotations

from fico_export.logs.records import Profile, Timed
from fico_export.logs.text import Text

_KERNEL = "_kernel_time"
_NESTING = ("Scan", "Loop", "If")
_RUN = "model_run"


def profile(text: Text, start: int) -> Profile:
    """The mean time of each node over the runs.

    What a Scan, Loop or If runs inside has events of its own, within its own time: they are left out.

    Raises:
        LogError: a field is missing or no time; no run was profiled.
    """
    order: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    events: list[tuple[float, float, str, str]] = []
    runs = 0
    for at, value in text.elements(start):
        event = text.record(at, value)
        if event.get("cat") == "Session" and event.get("name") == _RUN:
            runs += 1
        if event.get("cat") != "Node" or not text.name(at, event, "name").endswith(_KERNEL):
            continue
        arguments = event.get("args")
        operator = str(arguments.get("op_name", "")) if isinstance(arguments, dict) else ""
        name = event["name"].removesuffix(_KERNEL).rstrip("/")
        events.append((text.number(at, event, "ts"), text.number(at, event, "dur"), name, operator))
    if not events or not runs:
        text.fail(start, "no run was profiled", "run the session at least once before end_profiling()")
    busy_until = -1.0
    for begin, took, name, operator in sorted(events, key=lambda e: (e[0], -e[1])):
        if begin < busy_until:
            continue
        if operator in _NESTING:
            busy_until = begin + took
        order.setdefault(name, []).append(took / 1e3)
        operators[name] = operator
    layers = tuple(Timed(name, sum(ms) / runs, None, operators[name]) for name, ms in order.items())
    return Profile(text.path, "onnxruntime", runs, layers)
