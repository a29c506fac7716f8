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
    """Keys and values of the tokens seen so far: a pair of device tensors [1, kv heads, length, D] per layer.

    The lengths differ by layer where the decoder reduces visual tokens.
    """

    def __init__(self, tensors: list[ort.OrtValue], device: str) -> None:
        self._tensors = tensors
        self._device = device

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer."""
        return [int(tensor.shape()[2]) for tensor in self._tensors[::2]]

    def drop_last(self, count: int) -> None:
        """Forget the last `count` tokens, to continue a conversation from there."""
        if count:
            rows = [np.ascontiguousarray(t.numpy()[:, :, : t.shape()[2] - count]) for t in self._tensors]
            self._tensors = [ort.OrtValue.ortvalue_from_numpy(r, self._device, 0) for r in rows]


class Decoder:
    """Runs prefill and decode on the decoder of a bundle, which is one graph, or two where it reduces visual tokens.

    Attributes:
        reduces: whether a prompt with a picture must go through `prefill`, into an empty cache.
        dtype: of embeddings and caches.
    """

    def __init__(self, folder: Path, manifest: Manifest, backend: str, threads: int = 0) -> None:
        self.reduces = manifest.reduction.in_decoder
        graph = manifest.graph("decoder_with_past" if self.reduces else "decoder_model_merged")
        self._session = open_session(folder / graph.file, backend, threads)
        self._device = "cuda" if backend == "ort-cuda" else "cpu"
        self._shape = (1, manifest.decoder.kv_heads, 0, manifest.decoder.head_dim)
        self._past = [i.name for i in graph.inputs if i.name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values.", "present.") for name in self._past]
        self.dtype = np.dtype(graph.inputs[0].dtype)
        self._prefill: ort.InferenceSession | None = None
        if self.reduces:
            file = manifest.graph("decoder_prefill").file
            self._prefill = open_session(folder / file, backend, threads)

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
        known = max(cache.lengths)
        binding = self._bind(self._session, embeds, positions)
        if not self.reduces:
            binding.bind_cpu_input("attention_mask", np.ones((1, known + len(positions)), np.int64))
        for name, tensor in zip(self._past, cache._tensors, strict=True):
            binding.bind_ortvalue_input(name, tensor)
        logits, *cache._tensors = self._run(self._session, binding, known)
        return np.asarray(logits.numpy()[0, -1], np.float32)

    def prefill(
        self, embeds: Array, positions: Sequence[int], visual_start: int
    ) -> tuple[npt.NDArray[np.float32], KvCache, npt.NDArray[np.int64]]:
        """Run a prompt with one picture, whose tokens are reduced on the way.

        Args:
            embeds: [S, C] in the decoder's precision.
            positions: S position ids.
            visual_start: the row where the picture's tokens begin.

        Returns:
            Logits [V] after the last token, the cache, and which of the picture's tokens [K] its last layer holds.

        Raises:
            EngineError: ONNX Runtime failed, such as for lack of memory.
        """
        assert self._prefill is not None, "this decoder does not reduce: append to an empty cache"
        binding = self._bind(self._prefill, embeds, positions)
        binding.bind_cpu_input("visual_start", np.asarray([visual_start], np.int64))
        binding.bind_output("keep_index", "cpu")
        logits, kept, *tensors = self._run(self._prefill, binding, 0)
        return np.asarray(logits.numpy()[0, -1], np.float32), KvCache(tensors, self._device), kept.numpy()[0]

    def _bind(self, session: ort.InferenceSession, embeds: Array, positions: Sequence[int]) -> ort.IOBinding:
        binding = session.io_binding()
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds, self.dtype)[None])
        binding.bind_cpu_input("position_ids", np.asarray([positions], np.int64))
        binding.bind_output("logits", "cpu")
        return binding

    def _run(self, session: ort.InferenceSession, binding: ort.IOBinding, known: int) -> list[ort.OrtValue]:
        for name in self._present:
            binding.bind_output(name, self._device)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises classes of its own without a common base
            raise EngineError(
                f"the decoder failed after {known} tokens: {error}",
                mend="free memory, give a shorter prompt, or export with a smaller --keep",
            ) from error
        outputs: list[ort.OrtValue] = binding.get_outputs()
        return outputs
