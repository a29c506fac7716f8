"""Facts of a Linux machine, read from its files: pure functions of a root folder, so that any machine can be looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fico_export import documents
from fico_export.devices.nvidia import TENSORRT
from fico_export.errors import ConfigError

# Jetson Linux (L4T) → JetPack, newest first: a release belongs to the last one that is not newer (jetson-containers'
# l4t_version.py, NVIDIA's JetPack pages; 39.2.1 from users' logs).
_JETPACK = (
    ((39, 2, 1), "7.2.1"),
    ((39, 2, 0), "7.2"),
    ((38, 4, 0), "7.1"),
    ((38, 2, 0), "7.0"),
    ((36, 5, 0), "6.2.2"),
    ((36, 4, 4), "6.2.1"),
    ((36, 4, 3), "6.2"),
    ((36, 4, 0), "6.1"),
    ((36, 3, 0), "6.0"),
    ((35, 6, 1), "5.1.5"),
    ((35, 6, 0), "5.1.4"),
    ((35, 5, 0), "5.1.3"),
    ((35, 4, 1), "5.1.2"),
    ((35, 3, 1), "5.1.1"),
)


@dataclass(frozen=True)
class PowerMode:
    """A mode of nvpmodel by its number and name."""

    number: int
    name: str


@dataclass(frozen=True)
class Swap:
    """Bytes of swap on disk, and of zram (compressed memory)."""

    disk: int
    zram: int


def jetson_linux(root: Path) -> str | None:
    """The release of Jetson Linux, such as 36.4.3; None on another machine."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root, "etc/nv_tegra_release"))
    return f"{match[1]}.{match[2]}" if match else None


def jetpack(root: Path) -> str | None:
    """The release of JetPack, such as 6.2: of its package, else the one that has the release of Jetson Linux."""
    if version := packages(root).get("nvidia-jetpack"):
        return re.split(r"[+-]", version)[0]
    release = jetson_linux(root)
    if release is None:
        return None
    numbers = tuple(int(n) for n in release.split("."))
    same_line = ((first, name) for first, name in _JETPACK if first[0] == numbers[0])
    return next((name for first, name in same_line if first <= (*numbers, 0)[:3]), None)


def packages(root: Path) -> dict[str, str]:
    """Versions of the Debian packages that are installed."""
    found = {}
    for block in _text(root, "var/lib/dpkg/status").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed") and "Package" in fields:
            found[fields["Package"]] = fields.get("Version", "")
    return found


def compatible(root: Path) -> list[str]:
    """What the device tree says that the machine is, such as nvidia,p3767-0005; empty without a device tree."""
    return [name for name in _text(root, "proc/device-tree/compatible").split("\0") if name]


def model(root: Path) -> str:
    """The device tree's name of the machine; empty without one."""
    return _text(root, "proc/device-tree/model").rstrip("\0\n")


def driver(root: Path) -> str | None:
    """Version of NVIDIA's kernel driver, or None."""
    match = re.search(r"NVRM version: .*?\b(\d+\.\d+(?:\.\d+)?)\b", _text(root, "proc/driver/nvidia/version"))
    return match[1] if match else None


def cuda(root: Path) -> str | None:
    """Version of the CUDA toolkit at /usr/local/cuda, or None."""
    try:
        version = documents.parse(_text(root, "usr/local/cuda/version.json"), "version.json", fix="")["cuda"][
            "version"
        ]
    except (ConfigError, KeyError, TypeError):
        return None
    return str(version)


def tensorrt(root: Path) -> str | None:
    """Version of TensorRT's Debian package without its build, such as 10.3.0.30; None where it is not installed."""
    found = packages(root)
    for name in TENSORRT.debian:
        if name in found:
            return re.split(r"[+-]", found[name])[0]
    return None


def power_modes(root: Path) -> list[PowerMode]:
    """The modes of /etc/nvpmodel.conf."""
    found = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(root, "etc/nvpmodel.conf"))
    return [PowerMode(int(number), name) for number, name in found]


def power_mode(root: Path) -> PowerMode | None:
    """The mode that is set, as `nvpmodel -q` would say; None where nvpmodel has set none."""
    match = re.search(r"pmode:(\d+)", _text(root, "var/lib/nvpmodel/status"))
    if match is None:
        return None
    number = int(match[1])
    names = {mode.number: mode.name for mode in power_modes(root)}
    return PowerMode(number, names.get(number, str(number)))


def cpu(root: Path) -> str | None:
    """Name of the processor; None where the system does not tell, as on Arm."""
    match = re.search(r"^model name\s*:\s*(.+)$", _text(root, "proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else None


def clocks(root: Path) -> dict[str, float]:
    """MHz at this moment: of each policy of cpufreq, by its first CPU, and of each device of devfreq, such as 17000000.gpu."""
    found = {}
    for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"), key=_number):
        if (khz := _text(policy, "scaling_cur_freq").strip()).isdigit():
            found[policy.name.replace("policy", "cpu")] = int(khz) / 1e3
    for device in sorted((root / "sys/class/devfreq").glob("*")):
        if (hz := _text(device, "cur_freq").strip()).isdigit():
            found[device.name] = int(hz) / 1e6
    return found


def governor(root: Path) -> str | None:
    """What chooses the first CPU's clock, such as performance or powersave; None where the system does not tell."""
    return _text(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None


def memory(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes: MemTotal, MemAvailable, CmaTotal, CmaFree and the rest."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", _text(root, "proc/meminfo"), re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in lines}


def swap(root: Path) -> Swap:
    """Swap from /proc/swaps."""
    sizes = {"zram": 0, "disk": 0}
    for line in _text(root, "proc/swaps").splitlines()[1:]:
        name, _, kilobytes, *_ = line.split()
        sizes["zram" if "zram" in name else "disk"] += int(kilobytes) * 1024
    return Swap(**sizes)


def _number(path: Path) -> int:
    return int(re.sub(r"\D", "", path.name) or 0)


def _text(root: Path, file: str) -> str:
    try:
        return (root / file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
