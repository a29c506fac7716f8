"""`fico doctor`: what this machine can do, and the mend for what it cannot."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata

import typer

from fico_export.cli.console import human_bytes, print_json
from fico_export.cli.options import DebugOption, JsonOption


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `status` is ok, note (something is missing that some jobs need) or problem."""

    what: str
    found: str
    status: str = "ok"
    mend: str = ""


def command(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Look at Python, ONNX Runtime, GPU, memory, disk and the packages of the extras."""
    findings = [*_runtime(), _gpu(), *_memory(), _disk(), *_extras()]
    good = all(f.status != "problem" for f in findings)
    if as_json:
        print_json({"ok": good, "findings": [asdict(f) for f in findings]})
    else:
        for finding in findings:
            print(f"{finding.status:<8} {finding.what:<14} {finding.found}")
            if finding.mend:
                print(f"{'':<8} {'':<14} mend: {finding.mend}")
    if not good:
        raise typer.Exit(1)


def _runtime() -> list[Finding]:
    python = Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        import onnxruntime
    except ImportError as error:
        mend = "pip install onnxruntime-gpu on x86-64 Linux, else onnxruntime"
        return [python, Finding("ONNX Runtime", f"cannot be imported: {error}", "problem", mend)]
    providers = ", ".join(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
    return [python, Finding("ONNX Runtime", f"{onnxruntime.__version__}; providers {providers}")]


def _gpu() -> Finding:
    from fico_export.runtime.sessions import cuda_devices

    count = cuda_devices()
    if count:
        return Finding("GPU", f"{count} NVIDIA")
    return Finding("GPU", "none found", "note", "bundles run on the CPU; for a GPU install NVIDIA's driver")


def _memory() -> list[Finding]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return []
    return [Finding("memory", f"{human_bytes(total)}, {os.cpu_count()} cores")]


def _disk() -> Finding:
    return Finding("disk", f"{human_bytes(shutil.disk_usage('.').free)} free here")


def _extras() -> list[Finding]:
    jobs = {"export": "export and verify", "tensorrt": "TensorRT engines", "rtx": "TensorRT-RTX engines"}
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    findings = []
    for extra, package in (
        ("export", "torch"),
        ("export", "transformers"),
        ("export", "onnx"),
        ("export", "onnxscript"),
        ("tensorrt", "tensorrt"),
        ("rtx", "tensorrt-rtx-cu13"),
    ):
        mend = f"for {jobs[extra]}: pip install 'fico_export[{extra}]'"
        found = installed.get(package) or installed.get(package.replace("-", "_"))
        findings.append(Finding(package, found) if found else Finding(package, "not installed", "note", mend))
    return findings
