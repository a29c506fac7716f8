"""What logs say, whatever tool and version wrote them. Times are in milliseconds, of one run unless it says otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median


@dataclass(frozen=True)
class Timed:
    """A layer or node, and how long it took in a run: the mean, and the median where the log has it.

    `operator` is ONNX Runtime's name of what the node computes; a layer of TensorRT has none here.
    """

    name: str
    mean_ms: float
    median_ms: float | None = None
    operator: str = ""


@dataclass(frozen=True)
class Profile:
    """A run layer by layer, in the order of execution: `tool` is trtexec or onnxruntime, `runs` were averaged."""

    path: Path
    tool: str
    runs: int
    layers: tuple[Timed, ...]

    @property
    def total_ms(self) -> float:
        """The sum of the layers' means."""
        return sum(layer.mean_ms for layer in self.layers)


@dataclass(frozen=True)
class Times:
    """trtexec --exportTimes: of each run the time on the GPU, of both transfers, of the call that starts it, and of all."""

    path: Path
    compute_ms: tuple[float, ...]
    h2d_ms: tuple[float, ...]
    d2h_ms: tuple[float, ...]
    enqueue_ms: tuple[float, ...]
    latency_ms: tuple[float, ...]


@dataclass(frozen=True)
class Tensor:
    """An input or output; what the log does not say is empty, a free dimension −1."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    format: str = ""


@dataclass(frozen=True)
class Layer:
    """A layer of an engine; `nodes` are the ONNX nodes that it was made of, known of a detailed log alone."""

    name: str
    kind: str = ""
    tactic: str = ""
    nodes: tuple[str, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Engine:
    """trtexec --exportLayerInfo: an engine's layers and its own inputs and outputs."""

    path: Path
    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]

    @property
    def detailed(self) -> bool:
        """Whether it was written with --profilingVerbosity=detailed."""
        return any(layer.kind for layer in self.layers)


@dataclass(frozen=True)
class Statistics:
    """Of a time over the runs; `percentiles` by the per cent."""

    least: float
    most: float
    mean: float
    median: float
    percentiles: dict[float, float]


@dataclass(frozen=True)
class Summary:
    """trtexec's plain log: version, command, GPU, and its performance summary; of what it does not say, None or nothing."""

    path: Path
    version: str | None
    command: tuple[str, ...]
    gpu: str | None
    runs: int | None
    queries_per_second: float
    compute_ms: Statistics
    latency_ms: Statistics | None = None
    enqueue_ms: Statistics | None = None
    h2d_ms: Statistics | None = None
    d2h_ms: Statistics | None = None
    profile: Profile | None = None


@dataclass(frozen=True)
class Logs:
    """All that several files say."""

    times: tuple[Times, ...] = ()
    profiles: tuple[Profile, ...] = ()
    engines: tuple[Engine, ...] = ()
    summaries: tuple[Summary, ...] = field(default=())


def statistics(values: Sequence[float]) -> Statistics:
    """Of at least one value; percentiles 90, 95 and 99 by nearest rank."""
    ordered = sorted(values)
    ranks = {p: ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in (90.0, 95.0, 99.0)}
    return Statistics(ordered[0], ordered[-1], fmean(ordered), median(ordered), ranks)
