"""ONNX Runtime sessions."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from fico_export.bundle import graph_names
from fico_export.bundle.manifest import Manifest
from fico_export.devices.memory import give_back
from fico_export.errors import ConfigError, EngineError
from fico_export.runtime.backends.ort.threads import default_threads

CPU = "CPUExecutionProvider"


def open_session(
    path: Path, provider: str = CPU, threads: int = 0, profile_to: Path | None = None
) -> ort.InferenceSession:
    """Load a graph.

    Args:
        path: of the .onnx file.
        provider: ONNX Runtime's name of what computes.
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


def open_embedding(folder: Path, manifest: Manifest, threads: int) -> ort.InferenceSession:
    """The graph of a bundle that looks up embeddings, on the CPU: its table stays in host memory.

    Raises:
        EngineError: as of `open_session`.
    """
    return open_session(folder / manifest.graph(graph_names.EMBEDDING).file, CPU, threads)
