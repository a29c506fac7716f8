"""Trees of files as they are on machines that were met: a Jetson Orin Nano, an AGX Thor, a desktop."""

from pathlib import Path

NVPMODEL = """\
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online

< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
GPU MAX_FREQ 612000000
EMC MAX_FREQ 2133000000

< POWER_MODEL ID=1 NAME=25W >
GPU MAX_FREQ 918000000

< POWER_MODEL ID=2 NAME=MAXN_SUPER >
GPU MAX_FREQ -1

# mandatory section to configure the default power mode
< PM_CONFIG DEFAULT=1 >
"""
ORIN_NANO = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "etc/nvpmodel.conf": NVPMODEL,
    "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet",
    "proc/meminfo": "MemTotal:        7802736 kB\nMemFree:          668508 kB\nMemAvailable:    3245596 kB\nSwapTotal:       3901360 kB\n"
    "CmaTotal:         262144 kB\nCmaFree:           94736 kB\nHugePages_Total:       0\n",
    "proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    + "".join(f"/dev/zram{i}                              partition\t650224\t\t0\t\t5\n" for i in range(6)),
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "var/lib/dpkg/status": "Package: libnvinfer10\nStatus: install ok installed\nArchitecture: arm64\n"
    "Version: 10.3.0.30-1+cuda12.5\nDescription: TensorRT runtime libraries\n .\n More: of them.\n\n"
    "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2+b77\n\n"
    "Package: tensorrt\nStatus: deinstall ok config-files\nVersion: 10.7.0.23-1+cuda12.6\n",
}
THOR = {
    "etc/nv_tegra_release": "# R38 (release), REVISION: 4.0, GCID: 42000000, BOARD: generic, EABI: aarch64, DATE: Thu Dec 11 2025\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
    "var/lib/nvpmodel/status": "pmode:0000",
    "proc/meminfo": "MemTotal:       128800000 kB\nMemAvailable:   120000000 kB\nCmaTotal:              0 kB\nCmaFree:               0 kB\n",
    "proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
}
DESKTOP = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n"
    "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n",
    "proc/meminfo": "MemTotal:       65767432 kB\nMemAvailable:   51234567 kB\n",
    "proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/swap.img                               file\t\t8388604\t\t0\t\t-2\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "13.0.1"}}',
    "var/lib/dpkg/status": "Package: bash\nStatus: install ok installed\nVersion: 5.2\n",
}


def build(root: Path, files: dict[str, str]) -> Path:
    """Write a machine's files below a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
