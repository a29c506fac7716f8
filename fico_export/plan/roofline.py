"""How long a stage takes: the larger of arithmetic over peak and bytes over bandwidth, each by a range of efficiencies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import Field

from fico_export import tables
from fico_export.devices.catalog import Device, PowerMode
from fico_export.tables import Record

Kind = Literal["vision", "prefill", "prefill_int4", "fp32"]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Range:
    """An estimate: least, likely, most."""

    least: float
    likely: float
    most: float

    def __add__(self, other: Range) -> Range:
        return Range(self.least + other.least, self.likely + other.likely, self.most + other.most)

    def map(self, function: Callable[[float], float]) -> Range:
        """Of what `function` makes of each end, put in order."""
        first, likely, last = function(self.least), function(self.likely), function(self.most)
        return Range(min(first, last), likely, max(first, last))


class Efficiency(Record):
    """Of the peak: [fast, likely, slow]; `of` has those of single compute capabilities."""

    default: Triple
    of: dict[str, Triple] = Field(default_factory=dict)
    source: str


class Bytes(Record):
    """[least, likely, most]."""

    range: Triple
    source: str


class Estimates(Record):
    """The whole of estimates.toml."""

    compute: dict[Kind, Efficiency]
    bandwidth: dict[Literal["decode"], Efficiency]
    launch: Efficiency
    memory: dict[Literal["runtime", "process", "system_of_jetson", "system_of_gpu"], Bytes]


@dataclass(frozen=True)
class Machine:
    """What a device can do in a power mode.

    Attributes:
        compute_capability: such as 8.7.
        flops: peak in FP16 a second, accumulated in FP16 and in FP32; None where it is not known.
        bandwidth: bytes a second; None likewise.
    """

    compute_capability: str
    flops: tuple[float, float] | None
    bandwidth: float | None


@cache
def estimates() -> Estimates:
    """Our constants."""
    name = "estimates.toml"
    text = (resources.files("fico_export.plan") / name).read_text(encoding="utf-8")
    return tables.checked(Estimates, tables.parse(text, name), name)


def machine(device: Device, mode: PowerMode | None = None) -> Machine:
    """A device in a mode, its fastest by default: peaks fall with clock and multiprocessors, bandwidth is the mode's own."""
    share = 1.0
    if mode is not None and mode.gpu_mhz and device.gpu_mhz:
        share *= mode.gpu_mhz / device.gpu_mhz
    if mode is not None and mode.sms and device.sms:
        share *= mode.sms / device.sms
    fast = device.peak.get("fp16")
    exact = device.peak.get("fp16_fp32", fast)
    bandwidth = (mode.bandwidth_gb_s if mode else None) or device.bandwidth_gb_s
    return Machine(
        device.compute_capability,
        (fast * share * 1e12, exact * share * 1e12) if fast and exact else None,
        bandwidth * 1e9 if bandwidth else None,
    )


def milliseconds(on: Machine, kind: Kind, flops: float, moved: float, layers: int) -> Range | None:
    """A stage of `flops` operations that moves `moved` bytes, in `layers` layers; None where peak or bandwidth is not known."""
    if on.flops is None or on.bandwidth is None:
        return None
    known = estimates()
    compute = known.compute[kind]
    reached = compute.of.get(on.compute_capability, compute.default)
    peaks = (on.flops[0], on.flops[1], on.flops[1])  # the fast end may accumulate in FP16
    least, likely, most = (
        max(flops / (peak * arithmetic), moved / (on.bandwidth * read)) * 1e3 + layers * launch * 1e-3
        for peak, arithmetic, read, launch in zip(
            peaks, reached, known.bandwidth["decode"].default, known.launch.default, strict=True
        )
    )
    return Range(least, likely, most)


def memory(name: Literal["runtime", "process", "system_of_jetson", "system_of_gpu"]) -> Range:
    """Bytes."""
    return Range(*estimates().memory[name].range)
