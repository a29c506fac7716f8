"""Where a profile was measured, as far as the machine tells."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from fico_export.devices import machine
from fico_export.devices.nvidia import BINDINGS, RTX, TENSORRT
from fico_export.profile.record import Machine
from fico_export.runtime.backends.ort.threads import default_threads

_PACKAGES = (
    "fico_export", "numpy", "onnxruntime", "onnxruntime-gpu", TENSORRT.wheel, RTX.wheel, BINDINGS,
)  # fmt: skip
_SMI = ("name", "driver_version", "clocks.sm", "clocks.mem", "power.limit")


def describe(root: Path = Path("/")) -> Machine:
    """This machine, its clocks as they are now."""
    smi = read_smi(ask_smi())
    cpu = machine.cpu(root)
    gpu = smi.get("name")
    return Machine(
        name=machine.model(root) or gpu or cpu or platform.machine(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu,
        cores=default_threads(),
        gpu=gpu,
        driver=machine.driver(root) or smi.get("driver_version"),
        power_mode=power_mode(root, smi),
        clocks_mhz={name: (mhz, mhz) for name, mhz in clocks(root, smi).items()},
        versions=versions(),
    )


def ended(seen: Machine, root: Path = Path("/")) -> Machine:
    """The same machine, with the clocks that it has now as those of the end."""
    now = clocks(root, read_smi(ask_smi()))
    both = {name: (first, now.get(name, last)) for name, (first, last) in seen.clocks_mhz.items()}
    return seen.model_copy(update={"clocks_mhz": both})


def power_mode(root: Path, smi: dict[str, str]) -> str | None:
    """What limits the clocks: nvpmodel's mode on a Jetson, else the CPU's governor and the GPU's limit of power."""
    if mode := machine.power_mode(root):
        return mode.name
    governor = machine.governor(root)
    watts = _number(smi.get("power.limit", ""))
    limits = [f"CPU {governor}" if governor else "", f"GPU {watts:.0f} W" if watts is not None else ""]
    return ", ".join(filter(None, limits)) or None


def clocks(root: Path, smi: dict[str, str]) -> dict[str, float]:
    """MHz by what is clocked."""
    gpu = {name: _number(smi.get(name, "")) for name in ("clocks.sm", "clocks.mem")}
    known = {name.replace("clocks.", "gpu "): mhz for name, mhz in gpu.items() if mhz is not None}
    return machine.clocks(root) | known


def ask_smi() -> str:
    """What nvidia-smi says of the GPUs, a line each; empty where there is no nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def read_smi(text: str) -> dict[str, str]:
    """The first GPU of nvidia-smi's answer, without what it does not know (a Jetson's answers [N/A])."""
    fields = [field.strip() for field in text.strip().partition("\n")[0].split(",")]
    if len(fields) != len(_SMI):
        return {}
    return {name: value for name, value in zip(_SMI, fields, strict=True) if value and value[0] != "["}


def versions() -> dict[str, str]:
    """Of Python and of the packages that run bundles, where they are installed."""
    known = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | {name: v for name, v in known.items() if v is not None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
