"""The graphs of a bundle as ONNX Runtime's sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from fico_export.bundle.manifest import Manifest
from fico_export.runtime.backends.ort.decoder import Decoder
from fico_export.runtime.backends.ort.memory import require_host_memory
from fico_export.runtime.backends.ort.sessions import CPU, open_embedding, open_session


class OrtGraphs:
    """Opens the graphs of a bundle.

    Args:
        folder: of the bundle.
        manifest: its manifest.
        provider: ONNX Runtime's name of what computes.
        threads: CPU threads within an operator; 0 for one per core.
    """

    def __init__(self, folder: Path, manifest: Manifest, provider: str, threads: int) -> None:
        self._folder, self._manifest = folder, manifest
        self._provider, self._threads = provider, threads

    def require_memory(self, steps: Sequence[Sequence[str]], *, low_memory: bool) -> None:
        """Refuse graphs that will not fit into host memory; on a GPU, the driver says what fits."""
        if self._provider == CPU:
            require_host_memory(self._manifest, steps, low_memory=low_memory)

    def session(self, name: str) -> ort.InferenceSession:
        """A graph that keeps nothing from run to run."""
        return open_session(self._folder / self._manifest.graph(name).file, self._provider, self._threads)

    def embedding(self) -> ort.InferenceSession:
        """The lookup of embeddings, on the CPU whatever runs the others."""
        return open_embedding(self._folder, self._manifest, self._threads)

    def decoder(self) -> Decoder:
        """The decoder, of one graph or two."""
        return Decoder(self._folder, self._manifest, self._provider, self._threads)
