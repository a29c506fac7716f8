"""The decoder graph and its KV cache, which stays on the device and is handed from step to step by I/O binding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fico_export.bundle.manifest import Manifest
from fico_export.errors import EngineError
from fico_export.runtime.sessions import open_session

Array = npt.NDArray[np.generic]


class KvCache:
    """Keys and values of the tokens seen so far: one pair of device tensors [1, kv heads, length, D] per layer."""

    def __init__(self, tensors: list[ort.OrtValue], device: str) -> None:
        self._tensors = tensors
        self._device = device

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self._tensors[0].shape()[2])

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens, to continue a conversation from there."""
        if length < self.length:
            rows = [np.ascontiguousarray(t.numpy()[:, :, :length]) for t in self._tensors]
            self._tensors = [ort.OrtValue.ortvalue_from_numpy(r, self._device, 0) for r in rows]


class Decoder:
    """Runs prefill and decode on the one decoder graph of a bundle."""

    def __init__(self, folder: Path, manifest: Manifest, backend: str, threads: int = 0) -> None:
        graph = manifest.graph("decoder_model_merged")
        self._session = open_session(folder / graph.file, backend, threads)
        self._device = "cuda" if backend == "ort-cuda" else "cpu"
        self._shape = (1, manifest.decoder.kv_heads, 0, manifest.decoder.head_dim)
        self._past = [i.name for i in graph.inputs if i.name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values.", "present.") for name in self._past]
        self.dtype = np.dtype(graph.inputs[0].dtype)

    def new_cache(self) -> KvCache:
        """An empty cache."""
        empty = np.zeros(self._shape, self.dtype)
        return KvCache(
            [ort.OrtValue.ortvalue_from_numpy(empty, self._device, 0) for _ in self._past], self._device
        )

    def append(self, cache: KvCache, embeds: Array, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        """Run new tokens after those in the cache, which grows by them.

        Args:
            cache: of this decoder.
            embeds: [S, C] in the decoder's precision.
            positions: S position ids.

        Returns:
            Logits [V] after the last token.

        Raises:
            EngineError: ONNX Runtime failed, such as for lack of memory.
        """
        binding = self._session.io_binding()
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds, self.dtype)[None])
        binding.bind_cpu_input("attention_mask", np.ones((1, cache.length + len(positions)), np.int64))
        binding.bind_cpu_input("position_ids", np.asarray([positions], np.int64))
        for name, tensor in zip(self._past, cache._tensors, strict=True):
            binding.bind_ortvalue_input(name, tensor)
        binding.bind_output("logits", "cpu")
        for name in self._present:
            binding.bind_output(name, self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises classes of its own without a common base
            raise EngineError(
                f"the decoder failed after {cache.length} tokens: {error}",
                mend="free memory, give a shorter prompt, or export with a smaller --keep",
            ) from error
        logits, *cache._tensors = binding.get_outputs()
        return np.asarray(logits.numpy()[0, -1], np.float32)
