"""trtexec's plain log: its performance summary, and the table of --dumpProfile."""

from __future__ import annotations

import math
import re
import shlex

from fico_export.documents import MAX_DIGITS
from fico_export.logs.records import Profile, Statistics, Summary, Timed
from fico_export.logs.text import COMMA, Text

_PREFIX = r"^(?:\[[^\]\n]*\] \[[IWEV]\] )?"
_RUNNING = re.compile(
    r"^&&&& RUNNING TensorRT\.trtexec \[TensorRT v(\d+)\](?: \[b\d+\])? # (.*)$", re.MULTILINE
)
_FAILED = re.compile(r"^&&&& FAILED", re.MULTILINE)
_ERROR = re.compile(r"^\[[^\]\n]*\] \[E\] (.*)$", re.MULTILINE)
_GPU = re.compile(_PREFIX + r"Selected Device: (.+)$", re.MULTILINE)
_RUNS = re.compile(_PREFIX + r"Timing trace has (\d+) queries", re.MULTILINE)
_RATE = re.compile(_PREFIX + r"Throughput: (\S+) qps", re.MULTILINE)
_TABLE = re.compile(_PREFIX + r"=== Profile \((\d+) iterations \) ===", re.MULTILINE)
_ROW = re.compile(_PREFIX + r"\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+[\d.]+\s+(\S.*)$")
_COMMAS = re.compile(r"= -?\d+,\d+ ms|: \d+,\d+ qps")
_FIELD = re.compile(r"(min|max|mean|median|percentile\(([\d.]+)%\)) =? ?(\S+) ms")
_ZERO = "run trtexec without --skipInference, with --iterations of at least 1"


def is_one(text: Text) -> bool:
    """Whether trtexec wrote it."""
    return bool(
        _RUNNING.search(text.text) or _RATE.search(text.text) or "=== Performance summary ===" in text.text
    )


def summary(text: Text) -> Summary:
    """A log that ends with a performance summary.

    Raises:
        LogError: trtexec failed, timed nothing, wrote decimal commas, or the log is truncated.
    """
    if match := _FAILED.search(text.text):
        error = _ERROR.search(text.text)
        at = error.start() if error else match.start()
        text.fail(
            at,
            f"trtexec failed: {error[1] if error else 'no error was logged'}",
            "fix that, and run it again",
        )
    if match := _COMMAS.search(text.text):
        text.fail(match.start(), "numbers with decimal commas", COMMA)
    runs = _RUNS.search(text.text)
    if runs and not runs[1].strip("0"):
        text.fail(runs.start(), "zero iterations were timed", _ZERO)
    rate, compute = _RATE.search(text.text), _statistics(text, "GPU Compute Time")
    if rate is None or compute is None:
        missing = "Throughput" if rate is None else "GPU Compute Time"
        text.fail(
            len(text.text.rstrip()),
            f"the log ends without a performance summary: {missing!r} is missing",
            _ZERO,
        )
    running, gpu = _RUNNING.search(text.text), _GPU.search(text.text)
    return Summary(
        path=text.path,
        version=_version(running[1]) if running else None,
        command=_command(running[2]) if running else (),
        gpu=gpu[1].strip() if gpu else None,
        runs=_whole(text, runs) if runs else None,
        queries_per_second=_number(text, rate.start(1), rate[1]),
        compute_ms=compute,
        latency_ms=_statistics(text, "Latency"),
        enqueue_ms=_statistics(text, "Enqueue Time"),
        h2d_ms=_statistics(text, "H2D Latency"),
        d2h_ms=_statistics(text, "D2H Latency"),
        profile=_profile(text),
    )


def _version(digits: str) -> str:
    """8601 is 8.6.1, 100300 is 10.3.0; of any other length it is as written."""
    if not 4 <= len(digits) <= 6:
        return digits[:20]
    major = digits[:-4] if len(digits) > 4 else digits[0]
    minor, patch = (digits[-4:-2], digits[-2:]) if len(digits) > 4 else (digits[1], digits[2:])
    return f"{int(major)}.{int(minor)}.{int(patch)}"


def _command(line: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(line, posix="\\" not in line))
    except ValueError:  # a quote that does not end
        return tuple(line.split())


def _statistics(text: Text, title: str) -> Statistics | None:
    found = re.search(_PREFIX + re.escape(title) + r": (min = .*)$", text.text, re.MULTILINE)
    if found is None:
        return None
    at, values, percentiles = found.start(1), {}, {}
    for field in _FIELD.finditer(found[1]):
        value = _number(text, at, field[3])
        if field[2]:
            percentiles[_number(text, at, field[2])] = value
        else:
            values[field[1]] = value
    if missing := [name for name in ("min", "max", "mean", "median") if name not in values]:
        text.fail(at, f"{missing[0]!r} of {title} is missing")
    return Statistics(values["min"], values["max"], values["mean"], values["median"], percentiles)


def _profile(text: Text) -> Profile | None:
    """The table of --dumpProfile, as 8.6 and later write it: times first, the layer's name last."""
    head = _TABLE.search(text.text)
    if head is None:
        return None
    runs = _whole(text, head)
    if runs == 0:
        text.fail(head.start(), "zero iterations were profiled", _ZERO)
    layers: list[Timed] = []
    for line in text.text[head.end() :].splitlines()[1:]:
        row = _ROW.match(line.rstrip())
        if row and row[4] == "Total":
            break
        if row:
            mean, median = (_number(text, head.start(), row[group]) for group in (2, 3))
            layers.append(Timed(row[4], mean, median))
        elif layers:
            break
    return Profile(text.path, "trtexec", runs, tuple(layers)) if layers else None


def _whole(text: Text, found: re.Match[str]) -> int:
    """The number that a match's first group holds."""
    if len(found[1]) > MAX_DIGITS:
        text.fail(found.start(1), f"{found[1][:12]}… is no number of runs")
    return int(found[1])


def _number(text: Text, at: int, written: str) -> float:
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        text.fail(at, f"{written[:40]} is no time", "profile again: a time was not measured")
    return value
