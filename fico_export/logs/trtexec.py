"""trtexec's JSON files: --exportTimes, --exportProfile, --exportLayerInfo, of 8.6, 10.x and 11.x."""

from __future__ import annotations

import re
from typing import Any

from fico_export.logs.records import Engine, Layer, Profile, Tensor, Timed, Times
from fico_export.logs.text import Text

_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_ZERO = "run trtexec without --skipInference, with --iterations of at least 1"


def times(text: Text, start: int) -> Times:
    """--exportTimes; 8.6 and earlier have `endToEndMs` too, which says nothing more.

    Raises:
        LogError: a field is missing or no time; there are no runs.
    """
    rows: list[tuple[float, ...]] = []
    for at, value in text.elements(start):
        record = text.record(at, value)
        enqueued = text.number(at, record, "endEnqMs") - text.number(at, record, "startEnqMs")
        fields = ("computeMs", "h2dMs", "d2hMs", "latencyMs")
        rows.append((enqueued, *(text.number(at, record, field) for field in fields)))
    if not rows:
        text.fail(start, "zero iterations were timed", _ZERO)
    enqueue, compute, h2d, d2h, latency = zip(*rows, strict=True)
    return Times(text.path, compute, h2d, d2h, enqueue, latency)


def profile(text: Text, start: int) -> Profile:
    """--exportProfile: a count of iterations, then the layers; 8.4 and earlier have no `medianMs`.

    Raises:
        LogError: a field is missing or no time; there are no iterations or layers.
    """
    elements = text.elements(start)
    at, head = next(elements)
    runs = int(text.number(at, text.record(at, head), "count"))
    if runs < 1:
        text.fail(at, "zero iterations were profiled", _ZERO)
    layers = []
    for at, value in elements:
        record = text.record(at, value)
        median = text.number(at, record, "medianMs") if "medianMs" in record else None
        layers.append(Timed(text.name(at, record, "name"), text.number(at, record, "averageMs"), median))
    if not layers:
        text.fail(start, "no layer was profiled", _ZERO)
    return Profile(text.path, "trtexec", runs, tuple(layers))


def engine(text: Text) -> Engine:
    """--exportLayerInfo: names alone, or with --profilingVerbosity=detailed everything.

    Up to 10.x `Bindings` and `Format/Datatype`; from 11 on `I/O Tensors`, and `Format` and `Datatype` apart.

    Raises:
        LogError: it is no such file, or truncated.
    """
    begin = text.text.index("{")
    found = re.compile(r'"Layers"\s*:\s*\[').search(text.text, begin)
    if found is None:
        text.fail(begin, "'Layers' is missing", "give the file that trtexec --exportLayerInfo wrote")
    layers = [_layer(text, at, value) for at, value in text.elements(found.end() - 1)]
    if not layers:
        text.fail(found.start(), "the engine has no layers")
    whole, _ = text.value(begin)
    tensors = whole.get("I/O Tensors", whole.get("Bindings", []))
    if not isinstance(tensors, list):
        text.fail(begin, "the engine's inputs and outputs are no list")
    return Engine(text.path, tuple(layers), tuple(_tensor(text, begin, t) for t in tensors))


def _layer(text: Text, at: int, value: Any) -> Layer:
    if isinstance(value, str):
        return Layer(value)
    record = text.record(at, value)
    sides = []
    for side in ("Inputs", "Outputs"):
        tensors = record.get(side, [])
        if not isinstance(tensors, list):
            text.fail(at, f"{side} is no list")
        sides.append(tuple(_tensor(text, at, tensor) for tensor in tensors))
    return Layer(
        text.name(at, record, "Name"),
        str(record.get("LayerType", "")),
        str(record.get("TacticName", "")),
        tuple(_NODE.findall(str(record.get("Metadata", "")))),
        *sides,
    )


def _tensor(text: Text, at: int, value: Any) -> Tensor:
    if isinstance(value, str):
        return Tensor(value)
    record = text.record(at, value)
    shape = record.get("Dimensions", [])
    if not isinstance(shape, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in shape):
        text.fail(at, f"Dimensions are {shape!r:.60}, not a list of whole numbers")
    profiles = record.get("ProfileInfo") or [{}]
    if not isinstance(profiles, list) or not isinstance(profiles[0], dict):
        text.fail(at, f"ProfileInfo is {profiles!r:.60}, not a list of objects")
    layout = record.get("Format") or record.get("Format/Datatype") or profiles[0].get("Format", "")
    dtype = record.get("Datatype", record.get("DataType", "" if "Format" in record else layout))
    return Tensor(text.name(at, record, "Name"), tuple(shape), str(dtype), str(layout))
