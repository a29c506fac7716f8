"""Logs by what is in them, whatever they are called; of a bundle's engines, where a bundle is given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fico_export.bundle.manifest import Manifest
from fico_export.errors import LogError
from fico_export.logs import ort, plain, trtexec
from fico_export.logs.records import Engine, Logs, Profile, Summary, Times
from fico_export.logs.stages import layer_numbers
from fico_export.logs.text import AGAIN, Text, read

_ARRAY = re.compile(r"\s*\[(?=\s*[{\]]|\s*$)")
_OBJECT = re.compile(r"\s*\{")
_KNOWN = "give files of trtexec --exportTimes, --exportProfile or --exportLayerInfo, its plain log, or a profile of ONNX Runtime"


def read_logs(paths: Sequence[Path], bundle: Path | None = None) -> Logs:
    """Read logs of trtexec 8.6, 10.x and 11.x and of ONNX Runtime's profiler.

    Args:
        paths: the files, in any order and of any name.
        bundle: whose graphs the logs are of; those that are evidently of another model are refused.

    Raises:
        LogError: a file is none of these, damaged, of no runs, or of another engine; the message names the line.
        BundleError: the bundle cannot be read.
    """
    manifest = Manifest.load(bundle) if bundle is not None else None
    found: list[Times | Profile | Engine | Summary] = []
    for path in paths:
        log = _read(read(path))
        if manifest is not None:
            _require_of(log, manifest)
        found.append(log)
        if isinstance(log, Summary) and log.profile:
            found.append(log.profile)
    return Logs(
        tuple(log for log in found if isinstance(log, Times)),
        tuple(log for log in found if isinstance(log, Profile)),
        tuple(log for log in found if isinstance(log, Engine)),
        tuple(log for log in found if isinstance(log, Summary)),
    )


def _read(text: Text) -> Times | Profile | Engine | Summary:
    if _OBJECT.match(text.text):
        return trtexec.engine(text)
    if (array := _ARRAY.match(text.text)) is None:
        if not plain.is_one(text):
            text.fail(0, "no log of trtexec or of ONNX Runtime's profiler", _KNOWN)
        return plain.summary(text)
    start = array.end() - 1
    first = next(text.elements(start), None)
    if first is None:
        text.fail(start, "the list is empty: zero iterations", AGAIN)
    record = text.record(*first)
    if "count" in record:
        return trtexec.profile(text, start)
    if "ph" in record or "cat" in record:
        return ort.profile(text, start)
    if any(field.endswith("Ms") and field != "averageMs" for field in record) and "name" not in record:
        return trtexec.times(text, start)
    if "averageMs" in record or "timeMs" in record:
        text.fail(first[0], "'count' is missing before the layers")
    fields = ", ".join(sorted(record)) or "nothing"
    return text.fail(first[0], f"a list of objects with {fields:.200}: no log that is known", _KNOWN)


def _require_of(log: Times | Profile | Engine | Summary, manifest: Manifest) -> None:
    """Refuse a log whose engine has other inputs and outputs, or more layers, than any graph of the bundle.

    Raises:
        LogError: it does.
    """
    profile = log.profile if isinstance(log, Summary) else log
    if isinstance(log, Engine):
        graphs = [{t.name for t in (*g.inputs, *g.outputs)} for g in manifest.graphs.values()]
        named = {tensor.name for tensor in log.tensors}
        if named and not any(named <= graph for graph in graphs):
            odd = sorted(named - set().union(*graphs)) or sorted(named)
            _refuse(log.path, _line(log.path, odd[0]), f"its tensor {odd[0]!r} is in no graph", manifest)
        sizes = {
            t.name: t.shape for g in manifest.graphs.values() for t in (*g.inputs, *g.outputs)
        }  # by name: tensors of one name are alike in all graphs
        for tensor in log.tensors:
            known = sizes.get(tensor.name, [])
            pairs = list(zip(tensor.shape, known, strict=False))
            if any(isinstance(k, int) and n >= 0 and n != k for n, k in pairs):
                what = f"its tensor {tensor.name!r} is {list(tensor.shape)}, the graph's {known}"
                _refuse(log.path, _line(log.path, tensor.name), what, manifest)
    if isinstance(profile, (Profile, Engine)):
        names = [name for one in profile.layers for name in (one.name, *(getattr(one, "nodes", ())))]
        last = layer_numbers(names).get("language_model", -1)
        if last >= manifest.decoder.layers:
            where = f"language_model.layers.{last}"
            what = f"it has {where}, the decoder {manifest.decoder.layers} layers"
            _refuse(profile.path, _line(profile.path, where), what, manifest)


def _line(path: Path, needle: str) -> int:
    text = read(path)
    return text.line(max(0, text.text.find(needle)))


def _refuse(path: Path, line: int, what: str, manifest: Manifest) -> None:
    raise LogError(
        f"{path}, line {line}: a log of another engine than those of {manifest.name}: {what}",
        fix="give the logs of this bundle's engines, or the bundle that the logs are of",
    )
