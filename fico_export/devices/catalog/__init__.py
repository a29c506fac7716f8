"""Devices by name: tables of the TOML files in this folder, and of a user's own.

A file holds one table per device, and `[defaults]` that all of them share. What is not known is absent. Users add devices,
or change them, with files of the same form in the folder that FICO_DEVICES names: a table whose name is known replaces the
device, one with `like = "NAME"` starts from it.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fico_export import tables
from fico_export.devices import targets
from fico_export.devices.targets import Target
from fico_export.errors import ConfigError, unknown_name
from fico_export.tables import Record

FOLDER_VARIABLE = "FICO_DEVICES"
Arithmetic = Literal["fp16", "fp16_fp32", "int8", "fp8", "fp4"]
# What a table says of a device, and not what we chose for it: each needs its evidence.
_FACTS = (
    "compute_capability", "memory_gb", "usable_gb", "bandwidth_gb_s", "sms", "gpu_mhz", "peak", "watts", "modes",
    "jetpack", "modules",
)  # fmt: skip


class PowerMode(Record):
    """A mode of nvpmodel, and what it caps.

    Attributes:
        name: as `nvpmodel -q` gives it.
        watts: the budget; None for a mode without one.
        gpu_mhz: highest clock of the GPU.
        sms: multiprocessors that stay on.
        memory_mhz: highest clock of the memory.
        bandwidth_gb_s: that follows from it.
        jetpack: the first release that has the mode; empty for all.
    """

    name: str
    watts: PositiveFloat | None = None
    gpu_mhz: PositiveFloat | None = None
    sms: PositiveInt | None = None
    memory_mhz: PositiveFloat | None = None
    bandwidth_gb_s: PositiveFloat | None = None
    jetpack: str = ""


class Device(Record):
    """A GPU, or a module with one; its figures are those of its fastest mode.

    Attributes:
        name: as users give it.
        description: what its maker calls it.
        compute_capability: such as 8.7.
        memory_gb: total, in GB as sold; on a Jetson shared with the system.
        usable_gb: what was free for a model, measured.
        bandwidth_gb_s: peak of the memory.
        sms: multiprocessors.
        gpu_mhz: highest clock of the GPU.
        peak: dense peak in TFLOPS, or TOPS, by arithmetic: `fp16` accumulates in FP16, `fp16_fp32` in FP32.
        watts: board power.
        modes: of power.
        jetpack: releases that run on it.
        modules: part numbers, as the device tree gives them.
        target: that --device implies.
        precisions: that it computes in, the one to prefer first.
        evidence: where each figure comes from, by its name.
    """

    name: str
    description: str
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    memory_gb: PositiveFloat
    usable_gb: PositiveFloat | None = None
    bandwidth_gb_s: PositiveFloat | None = None
    sms: PositiveInt | None = None
    gpu_mhz: PositiveFloat | None = None
    peak: dict[Arithmetic, PositiveFloat] = Field(default_factory=dict)
    watts: PositiveFloat | None = None
    modes: list[PowerMode] = Field(default_factory=list)
    jetpack: list[str] = Field(default_factory=list)
    modules: list[str] = Field(default_factory=list)
    target: str
    precisions: list[str] = Field(min_length=1)
    evidence: dict[str, str]

    @model_validator(mode="after")
    def _every_fact_has_its_evidence(self) -> Device:
        given = [fact for fact in _FACTS if getattr(self, fact)]
        if missing := [fact for fact in given if not self.evidence.get(fact)]:
            raise ValueError(f"evidence is missing for {', '.join(missing)}")
        if idle := self.evidence.keys() - set(given):
            raise ValueError(f"evidence for what is not given: {', '.join(sorted(idle))}")
        return self


def load(folder: str | Path | None = None) -> dict[str, Device]:
    """All devices by name: ours, and those of `folder`, or of the folder that FICO_DEVICES names.

    Raises:
        ConfigError: a file of the folder is wrong; the message names it and the field.
    """
    raw = {
        name: (content, file)
        for file, text in _texts(Path(str(resources.files(__name__))))
        for name, content in _devices(text, file).items()
    }
    chosen = folder if folder is not None else os.environ.get(FOLDER_VARIABLE) or None
    if chosen is not None:
        given = Path(chosen)
        if not given.is_dir():
            raise ConfigError(
                f"no folder {given}", fix=f"--devices FOLDER, or {FOLDER_VARIABLE}, with TOML files"
            )
        for file, text in _texts(given):
            for name, content in _devices(text, file).items():
                raw[name] = (_based(content, raw, f"{file}: {name}"), file)
    return {name: _checked(name, content, file) for name, (content, file) in sorted(raw.items())}


def get(name: str, folder: str | Path | None = None) -> Device:
    """The device called `name`.

    Raises:
        ConfigError: no such device; the message lists the known.
    """
    known = load(folder)
    if name not in known:
        raise unknown_name("device", name, known)
    return known[name]


def resolve(device: Device | None, target: str | None, precision: str | None) -> tuple[Target, str]:
    """The target and the precision to export for: what was asked for, else what the device implies, else the defaults.

    Raises:
        ConfigError: the device does not compute in the precision, or the target does not build for it.
    """
    if device is None:
        return targets.get(
            targets.DEFAULT if target is None else target
        ), "fp32" if precision is None else precision
    chosen = targets.get(device.target if target is None else target)
    if chosen.compute_capabilities and device.compute_capability not in chosen.compute_capabilities:
        raise ConfigError(
            f"target {chosen.name} builds for compute capability {', '.join(chosen.compute_capabilities)}; "
            f"{device.name} has {device.compute_capability}",
            fix=f"--target {device.target}, or drop --target",
        )
    if precision is None:
        offered = [p for p in device.precisions if p in chosen.precisions]
        precision = offered[0] if offered else device.precisions[0]
    if precision not in device.precisions:
        raise ConfigError(
            f"{device.name} does not compute in {precision}",
            fix=f"--precision one of: {', '.join(device.precisions)}",
        )
    return chosen, precision


def require_memory(device: Device | None, weights: int, cache: int = 0) -> None:
    """Refuse weights, with a KV cache beside them, that the device cannot hold.

    Raises:
        ConfigError: their bytes are more than its memory, or than what was measured to be free of it.
    """
    if device is None:
        return
    room = device.usable_gb or device.memory_gb
    if weights + cache > room * 1e9:
        beside = f" and the KV cache {cache / 1e9:.1f} GB" if cache else ""
        smaller = "--precision, --max-context" if cache else "--precision"
        raise ConfigError(
            f"the weights take {weights / 1e9:.1f} GB{beside}, {device.name} has {room:g} GB for them",
            fix=f"a smaller {smaller} or model, or another --device",
        )


def of_module(compatible: list[str]) -> Device | None:
    """The Jetson whose part number is in a device tree's list of `compatible` names; None for none that is known."""
    parts = {part for name in compatible for part in name.removeprefix("nvidia,").split("+")}
    return next((device for device in load().values() if parts & set(device.modules)), None)


def _texts(folder: Path) -> list[tuple[str, str]]:
    return [(str(path), path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.toml"))]


def _devices(text: str, file: str) -> dict[str, dict[str, Any]]:
    content = tables.parse(text, file)
    for name, table in content.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f"{file}: {name!r} is not in the table of a device", fix=f"put it below [NAME] in {file}"
            )
    defaults = content.pop("defaults", {})
    return {name: _merged(_for(table, defaults), table) for name, table in content.items()}


def _for(table: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The defaults of a table, without evidence for what neither gives."""
    evidence = {key: text for key, text in defaults.get("evidence", {}).items() if key in defaults | table}
    return defaults | {"evidence": evidence}


def _based(content: dict[str, Any], raw: dict[str, tuple[dict[str, Any], str]], place: str) -> dict[str, Any]:
    """A table on top of the device that it is `like`, whose evidence does not count for what the table changes."""
    if "like" not in content:
        return content
    base = content["like"]
    if base not in raw:
        error = unknown_name("device", str(base), raw)
        raise ConfigError(f"{place}: like: {error.what}", fix=error.fix)
    changes = {key: value for key, value in content.items() if key != "like"}
    old = raw[base][0]
    evidence = {key: text for key, text in old.get("evidence", {}).items() if key not in changes}
    return _merged(old | {"evidence": evidence}, changes)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = base | changes
    if "evidence" in base and "evidence" in changes:
        merged["evidence"] = base["evidence"] | changes["evidence"]
    return merged


def _checked(name: str, content: dict[str, Any], file: str) -> Device:
    place = f"{file}: {name}"
    device = tables.checked(Device, {"name": name, **content}, place)
    if device.target not in targets.names():
        error = unknown_name("target", device.target, targets.names())
        raise ConfigError(f"{place}: target: {error.what}", fix=error.fix)
    return device
