"""What a request needs on a device, what would make it fit, and what other budgets, precisions and devices give."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fico_export.devices import catalog
from fico_export.devices.catalog import Device
from fico_export.errors import ConfigError
from fico_export.exporter import quantize
from fico_export.models.source import Architecture
from fico_export.plan.planner import Alternative, Estimate, PlanRequest, Work, count, estimate, shares_memory
from fico_export.reducers import DEFAULT

_BUDGETS = (192, 128, 64, 32)
_SMALLER_KEEP = 64


def plan(model: Architecture, request: PlanRequest, device: Device | None = None) -> Estimate:
    """Estimate a request on a device, and look for what would fit where it does not surely.

    Args:
        model: its config.
        request: what is to be exported.
        device: what it is to run on; None leaves the arithmetic.

    Raises:
        ConfigError: the request does not fit the model, the target or the device.
    """
    found = estimate(model, request, device, count(model, request))
    if device is None or found.verdict == "fits":
        return found
    return replace(found, options=tuple(_options(model, request, device, found)))


def sweep(model: Architecture, request: PlanRequest, device: Device | None = None) -> list[Estimate]:
    """Estimates of budgets from N down, each in every precision that the device, or the target, has.

    Raises:
        ConfigError: as of `plan`; or a chain of methods, whose budgets are its own.
    """
    if "@" in str(request.method):
        raise ConfigError(
            f"a sweep over K of --method {request.method}, which names its budgets",
            fix="drop --sweep and --out, or sweep one method of the chain",
        )
    total = model.plan("none", None, {}).visual_tokens
    smaller = {k for k in (request.keep, *_BUDGETS) if k is not None and k < total}
    budgets = [None] if request.method == "none" else [total, *sorted(smaller, reverse=True)]
    target, _ = catalog.resolve(device, request.target, request.precision)
    offered = [p for p in (device or target).precisions if p in target.precisions]
    found = []
    for keep in budgets:
        work = count(model, replace(request, keep=keep))
        for precision in offered:
            one = replace(request, keep=keep, precision=precision)
            if precision != quantize.PRECISION:
                one = replace(one, block=None, quantize_head=None, quantize_vision=None)
            found += _tried(model, one, device, work)
    return found


def everywhere(model: Architecture, request: PlanRequest) -> list[Estimate]:
    """An estimate for each device that computes in the precision and runs the target, without what else would fit."""
    found, work = [], count(model, request)
    devices = catalog.load(request.devices).values()
    for device in sorted(devices, key=lambda d: (not shares_memory(d), d.memory_gb, d.name)):
        found += _tried(model, request, device, work)
    return found


def _tried(model: Architecture, request: PlanRequest, device: Device | None, work: Work) -> list[Estimate]:
    """The estimate, or none where the model, the target or the device does not have what is tried."""
    try:
        return [estimate(model, request, device, work)]
    except ConfigError:
        return []


def _options(
    model: Architecture, request: PlanRequest, device: Device, asked: Estimate
) -> Iterator[Alternative]:
    """The fewest changes of the request, one on top of the other, that better its verdict; then another device."""
    changed, best = request, asked.verdict
    flags: dict[str, Any] = {}
    for change in _changes(device, request, asked):
        changed, flags = replace(changed, **change), flags | change
        tried = _tried(model, changed, device, count(model, changed))
        verdict = tried[0].verdict if tried else None
        if verdict not in (None, best, "does not fit"):
            best = verdict
            yield Alternative(_as_flags(flags), verdict)
        if verdict == "fits":
            break
    moved = replace(request, precision=asked.precision, target=None)
    work = count(model, moved)
    for other in sorted(catalog.load(request.devices).values(), key=lambda d: (d.memory_gb, d.name)):
        alike = shares_memory(other) == shares_memory(device) and asked.precision in other.precisions
        if not alike or other.name == device.name:
            continue
        if any(e.verdict == "fits" for e in _tried(model, moved, other, work)):
            yield Alternative(f"--device {other.name}", "fits")
            break


def _changes(device: Device, request: PlanRequest, asked: Estimate) -> Iterator[dict[str, Any]]:
    """What takes less memory, the least harmful first, where the device and the target have it."""
    target, _ = catalog.resolve(device, request.target, asked.precision)
    needed = asked.prompt_tokens + request.new_tokens
    rows = math.ceil(needed / 64) * 64
    if rows < asked.rows:
        yield {"max_context": rows}
    if request.max_batch > 1:
        yield {"max_batch": 1}
    if asked.precision == "fp32" and "fp16" in device.precisions:
        yield {"precision": "fp16"}
    int4 = "int4" in device.precisions and target.int4 is not None
    if int4 and asked.precision != "int4":
        yield {"precision": "int4"}
    if int4 and request.quantize_head is None:
        yield {"quantize_head": "int8"}
    if asked.keep > _SMALLER_KEEP and "@" not in str(request.method):
        yield {"keep": _SMALLER_KEEP} | ({"method": DEFAULT} if request.method == "none" else {})
    if int4 and request.quantize_vision is None:
        yield {"quantize_vision": "int8"}
    if int4 and request.quantize_head != "int4":
        yield {"quantize_head": "int4"}


def _as_flags(changes: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())
