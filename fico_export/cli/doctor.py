"""`fico doctor`: what this machine can do, and the fix for what it cannot."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import typer

from fico_export import extras
from fico_export.cli.console import human_bytes, print_json, put
from fico_export.cli.options import DebugOption, JsonOption
from fico_export.devices import machine
from fico_export.devices.nvidia import BINDINGS, JETPACK, RTX, TENSORRT

_TIGHT = 0.6  # of a Jetson's memory: the desktop of an 8 GB board takes a third of it
_SMALL = 17e9  # boards of up to 16 GB build engines only with swap
_CMA = 900 * 2**20  # 950 MiB is what users of 8 GB boards needed (hokwangchoi/jetson-orin-nano-benchmarks)
_DISK = 20e9


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `status` is ok, note (something is missing that some jobs need) or problem."""

    what: str
    found: str
    status: str = "ok"
    fix: str = ""


def command(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Look at Python, ONNX Runtime, the GPU, TensorRT, JetPack, power mode, memory, disk and the packages of the extras."""
    findings = [*_runtime(), _gpu(), *look(Path("/"), _installed()), _disk(Path.cwd()), *_extras()]
    good = all(f.status != "problem" for f in findings)
    if as_json:
        print_json({"ok": good, "findings": [asdict(f) for f in findings]})
    else:
        for finding in findings:
            put(f"{finding.status:<8} {finding.what:<14} {finding.found}")
            if finding.fix:
                put(f"{'':<8} {'':<14} hint: {finding.fix}")
    if not good:
        raise typer.Exit(1)


def look(root: Path, installed: dict[str, str]) -> list[Finding]:
    """What the files below a root folder, and the Python packages that are installed, say of a machine."""
    jetson = machine.jetson_linux(root) is not None
    findings = [*_jetson(root)] if jetson else [_driver(root)]
    return [*findings, _cuda(root, jetson), *_tensorrt(root, installed, jetson), *_memory(root, jetson)]


def _runtime() -> list[Finding]:
    python = Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        import onnxruntime
    except ImportError as error:
        fix = "pip install onnxruntime-gpu on x86-64 Linux, else onnxruntime"
        return [python, Finding("ONNX Runtime", f"cannot be imported: {error}", "problem", fix)]
    providers = ", ".join(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
    return [python, Finding("ONNX Runtime", f"{onnxruntime.__version__}; providers {providers}")]


def _gpu() -> Finding:
    from fico_export.devices import gpu

    if found := gpu.find():
        return Finding(
            "GPU", f"{found.name}, compute capability {found.compute_capability}; {gpu.count()} in all"
        )
    return Finding("GPU", "none found", "note", "bundles run on the CPU; for a GPU install NVIDIA's driver")


def _driver(root: Path) -> Finding:
    version = machine.driver(root)
    if version:
        return Finding("driver", f"NVIDIA {version}")
    return Finding(
        "driver", "none", "note", "for a GPU: install NVIDIA's driver (ubuntu-drivers install), and reboot"
    )


def _cuda(root: Path, jetson: bool) -> Finding:
    version = machine.cuda(root)
    if version:
        return Finding("CUDA", f"toolkit {version}")
    fix = JETPACK if jetson else "none is needed to run; ONNX Runtime and TensorRT bring theirs"
    return Finding("CUDA", "no toolkit at /usr/local/cuda", "note", fix)


def _jetson(root: Path) -> Iterator[Finding]:
    from fico_export.devices import catalog, targets

    device = catalog.of_module(machine.compatible(root))
    name = machine.model(root) or "a Jetson"
    if device is not None:
        yield Finding("device", f"{name}: --device {device.name}")
    else:
        fix = "describe it in a TOML file of a folder that FICO_DEVICES names; see `fico list devices --verbose`"
        yield Finding("device", f"{name}, of no part number that is known", "note", fix)
    linux, jetpack = machine.jetson_linux(root), machine.jetpack(root)
    target = targets.of_jetpack(jetpack) if jetpack else None
    found = f"{jetpack or 'unknown'} (Jetson Linux {linux})"
    if target is not None:
        yield Finding("JetPack", f"{found}: --target {target.name}")
    else:
        fix = "flash JetPack 6.2 (Orin) or 7.2 (Orin, Thor): earlier releases have TensorRT 8, which has no target here"
        yield Finding("JetPack", f"{found}: no target", "problem", fix)
    yield _power(root)


def _power(root: Path) -> Finding:
    mode, modes = machine.power_mode(root), machine.power_modes(root)
    if mode is None:
        return Finding(
            "power mode", "unknown", "note", "sudo nvpmodel -q shows it, sudo nvpmodel -m NUMBER sets it"
        )
    fastest = max(modes, key=_speed, default=mode)
    if _speed(mode) < _speed(fastest):
        fix = f"for full speed: sudo nvpmodel -m {fastest.number} ({fastest.name}), then sudo jetson_clocks"
        return Finding("power mode", f"{mode.name}", "note", fix)
    return Finding("power mode", f"{mode.name}; sudo jetson_clocks holds the clocks while measuring")


def _speed(mode: machine.PowerMode) -> float:
    """A mode without a cap is the fastest, then the one with most watts."""
    watts = re.search(r"(\d+)W", mode.name)
    return math.inf if mode.name.startswith("MAXN") else float(watts[1]) if watts else 0.0


def _tensorrt(root: Path, installed: dict[str, str], jetson: bool) -> Iterator[Finding]:
    version = machine.tensorrt(root) or TENSORRT.installed(installed)
    if version:
        yield Finding(TENSORRT.name, version)
    else:
        fix = JETPACK if jetson else TENSORRT.install
        yield Finding(TENSORRT.name, "not installed", "note", f"to build engines: {fix}")
    rtx = RTX.installed(installed)
    if rtx:
        yield Finding(RTX.name, rtx)
    elif not jetson:  # it builds for no Jetson
        fix = f"to build engines for GeForce and RTX without a GPU here: {RTX.install}"
        yield Finding(RTX.name, "not installed", "note", fix)
    yield from _bindings(version or rtx, installed)


def _bindings(library: str | None, installed: dict[str, str]) -> Iterator[Finding]:
    """What runs engines, beside the library that builds them; of no use without it."""
    if (found := installed.get(BINDINGS.replace("-", "_"))) is not None:
        yield Finding(BINDINGS, found)
    elif library:
        fix = "to run engines: pip install cuda-bindings; 'cuda-bindings<13' where the driver's CUDA is 12, as in JetPack 6"
        yield Finding(BINDINGS, "not installed", "note", fix)


def _memory(root: Path, jetson: bool) -> Iterator[Finding]:
    figures = machine.memory(root)
    if "MemTotal" not in figures:
        return
    total, available = figures["MemTotal"], figures.get("MemAvailable", 0)
    found = f"{human_bytes(available)} of {human_bytes(total)} available, {os.cpu_count()} cores"
    if jetson and available < _TIGHT * total:
        fix = "the GPU shares it: stop what is not needed, and the desktop with `sudo systemctl isolate multi-user.target`"
        yield Finding("memory", found, "note", fix)
    else:
        yield Finding("memory", found)
    swap = machine.swap(root)
    found = f"{human_bytes(swap.disk)} on disk, {human_bytes(swap.zram)} of zram"
    if jetson and total < _SMALL and swap.disk < total:
        fix = (
            "building an engine takes more than this board has: sudo fallocate -l 16G /swapfile, then "
            "chmod 600, mkswap and swapon it; zram takes memory: sudo systemctl disable --now nvzramconfig"
        )
        yield Finding("swap", found, "note", fix)
    else:
        yield Finding("swap", found)
    if jetson and "CmaTotal" in figures:
        yield _cma(figures["CmaTotal"], figures.get("CmaFree", 0), total)


def _cma(total: int, free: int, memory: int) -> Finding:
    found = f"{human_bytes(free)} of {human_bytes(total)} of contiguous memory free"
    if memory < _SMALL and total < _CMA:
        fix = "if a build fails with NvMap or out of memory: add cma=950M to APPEND in /boot/extlinux/extlinux.conf, reboot"
        return Finding("CMA", found, "note", fix)
    return Finding("CMA", found)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{human_bytes(free)} free here"
    if free < _DISK:
        fix = "a 7B bundle takes 4 GB in INT4 and 14 GB in FP16, its engines as much again: free some space"
        return Finding("disk", found, "note", fix)
    return Finding("disk", found)


def _installed() -> dict[str, str]:
    return {d.metadata["Name"].replace("-", "_"): d.version for d in metadata.distributions()}


def _extras() -> list[Finding]:
    installed, fix = _installed(), f"to export and verify: {extras.install('export')}"
    return [
        Finding(package, installed[package])
        if package in installed
        else Finding(package, "not installed", "note", fix)
        for package in ("torch", "transformers", "onnx", "onnxscript")
    ]
