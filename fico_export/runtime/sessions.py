"""ONNX Runtime sessions, and which backend this machine can run."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import onnxruntime as ort

from fico_export.devices import gpu, targets
from fico_export.devices.targets import Target
from fico_export.errors import ConfigError, EngineError, unknown_name
from fico_export.runtime.engine import LIBRARIES
from fico_export.runtime.threads import default_threads

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
# Those with engines are looked at by `engines`.
BACKENDS = (*PROVIDERS, *LIBRARIES)
AUTO = "auto"


def choose_backend(name: str, target: Target | None = None, engines: str | None = None) -> str:
    """A backend that can run here; `auto` takes engines where there are any that fit, else the GPU where there is one.

    Args:
        name: as users give it.
        target: of a bundle, which may not run on all of them.
        engines: the backend that the bundle has engines for, which fit this machine; None where there are none.

    Raises:
        ConfigError: unknown backend, no GPU or no GPU build of ONNX Runtime for the one asked for, or not one of the target's.
    """
    fit = (target and target.backends) or [*BACKENDS]
    if name == AUTO and engines in fit:
        return engines
    if name == AUTO:
        return "ort-cuda" if "ort-cuda" in fit and _cuda_problem() is None else "ort-cpu"
    if name not in BACKENDS:
        raise unknown_name("backend", name, [AUTO, *BACKENDS])
    if target and name in PROVIDERS and name not in fit:
        raise ConfigError(
            f"backend {name} does not run a bundle for target {target.name}",
            fix=f"give --backend {fit[0]}, or export with --target {targets.DEFAULT}",
        )
    problem = _cuda_problem() if name == "ort-cuda" else None
    if problem is not None:
        raise ConfigError(
            f"backend ort-cuda cannot run: {problem}", fix="give --backend ort-cpu, or see `fico doctor`"
        )
    return name


def open_session(
    path: Path, backend: str, threads: int = 0, profile_to: Path | None = None
) -> ort.InferenceSession:
    """Load a graph.

    Args:
        path: of the .onnx file.
        backend: a name of `PROVIDERS`.
        threads: CPU threads within an operator; 0 for one per physical core that this process may use.
        profile_to: beginning of the path of a file to write the time of every node to; see `end_profiling`.

    Raises:
        ConfigError: a negative number of threads, which ONNX Runtime would read as any.
        EngineError: ONNX Runtime cannot load it, or left the GPU for the CPU.
    """
    if threads < 0:
        raise ConfigError(f"threads is {threads}", fix="give a number from 1, or 0 for one per core")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or default_threads()
    # The arena grows by doubling and gives nothing back; without it a 7B decoder and its tower took 0.25 GB less, as fast.
    options.enable_cpu_mem_arena = False
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_to)
    provider = PROVIDERS[backend]
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime raises classes of its own without a common base
        raise EngineError(
            f"ONNX Runtime cannot load {path.name}: {error}",
            fix="run `fico verify` on the bundle, and `fico doctor` on this machine",
        ) from error
    give_back()
    if provider not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime could not start {provider} and would have run on {session.get_providers()}",
            fix="install the CUDA and cuDNN that this onnxruntime-gpu needs, or give --backend ort-cpu",
        )
    return session


def give_back() -> None:
    """Return to the system what is free in glibc's heaps, for it keeps what a graph's loading or a large step has freed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _cuda_problem() -> str | None:
    if PROVIDERS["ort-cuda"] not in ort.get_available_providers():
        return "this ONNX Runtime is a CPU build (install onnxruntime-gpu)"
    if gpu.count() == 0:
        return "no NVIDIA GPU and driver found"
    return None
