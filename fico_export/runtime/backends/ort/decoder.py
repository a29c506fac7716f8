"""The decoder graph, run by I/O binding: its KV cache stays on the device and is handed from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fico_export.bundle.manifest import Manifest
from fico_export.errors import EngineError, InputError
from fico_export.runtime.backends.base import Array, present_of, require_rows
from fico_export.runtime.backends.ort.cache import (
    GrowingCache,
    KvCache,
    RowsCache,
    SharedCache,
    StaticCache,
)
from fico_export.runtime.backends.ort.sessions import CPU, open_session

# Tokens run at once. More are no faster, and the memory of a step grows with their number.
CHUNK = 512

__all__ = ["CHUNK", "Decoder", "KvCache"]


class Decoder:
    """Runs prefill and decode on the decoder of a bundle, which is one graph, or two where it reduces visual tokens.

    Attributes:
        reduces: whether a prompt with a picture must go through `prefill`, into an empty cache.
        dtype: of embeddings and caches.
    """

    def __init__(self, folder: Path, manifest: Manifest, provider: str = CPU, threads: int = 0) -> None:
        self.reduces = manifest.reduction.in_decoder
        graph = manifest.graph(manifest.decoder_name)
        self._session = open_session(folder / graph.file, provider, threads)
        self._device = "cpu" if provider == CPU else "cuda"
        self._shape = manifest.decoder
        self._graph, self._shapes = graph, graph.shapes()
        self._past = graph.past
        self._rows = manifest.cache_rows
        # Whether past and present are one buffer: then they have one length, where else present has one of its own.
        self._shares = self._shapes["past_key_values.0.key"] == self._shapes["present.0.key"]
        self.dtype = np.dtype(graph.inputs[0].dtype)
        self._caches: WeakSet[GrowingCache] = WeakSet()
        self._prefill: ort.InferenceSession | None = None
        if self.reduces:
            file = manifest.graph("decoder_prefill").file
            self._prefill = open_session(folder / file, provider, threads)

    def new_cache(self) -> KvCache:
        """An empty cache."""
        if self._rows is not None:
            return self._static_cache()
        heads, head_dim = self._shape.kv_heads, self._shape.head_dim
        if self._shares:
            return SharedCache(self._past, heads, head_dim, self.dtype, self._shape.context)
        empty = np.zeros((1, heads, 0, head_dim), self.dtype)
        tensors = [ort.OrtValue.ortvalue_from_numpy(empty, self._device, 0) for _ in self._past]
        return self._growing_cache(tensors)

    def close(self) -> None:
        """Let the graphs go, and the caches live on: those that grow are tensors of a session, and would keep it in memory."""
        for cache in self._caches:
            cache.release()

    def _growing_cache(self, tensors: list[ort.OrtValue]) -> GrowingCache:
        cache = GrowingCache(tensors, self._past, self._device)
        self._caches.add(cache)
        return cache

    def _static_cache(self, filled: Sequence[Array] = ()) -> KvCache:
        kind = StaticCache if self._shares else RowsCache
        return kind(self._graph, self.dtype, self._device, filled)

    def append(self, cache: KvCache, embeds: Array, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        """Run new tokens after those in the cache, which grows by them.

        Args:
            cache: of this decoder; it stays as it was where running fails.
            embeds: [S, C] in the decoder's precision.
            positions: S position ids.

        Returns:
            Logits [V] after the last token.

        Raises:
            InputError: more tokens or a larger position than the model takes, or more than a static cache has room for.
            EngineError: ONNX Runtime failed, such as for lack of memory.
        """
        context = self._shape.context
        if (
            self._rows is None and self._shares and max(positions) >= context
        ):  # beyond its rotary table, which no kernel checks
            raise InputError(
                f"position id {max(positions)}; the model's context is {context}",
                fix="shorten the prompt, or start a new conversation",
            )
        done = 0
        try:
            cache.reserve(len(positions))
            for start in range(0, len(positions), CHUNK):
                chunk = slice(start, start + CHUNK)
                logits = self._step(cache, embeds[chunk], positions[chunk])
                done += len(positions[chunk])
        except BaseException:
            cache.drop_last(done)
            raise
        return logits

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
            InputError: more tokens than a static cache has room for.
            EngineError: ONNX Runtime failed, such as for lack of memory.
        """
        assert self._prefill is not None, "this decoder does not reduce: append to an empty cache"
        if self._rows is not None:
            require_rows(0, len(positions), self._rows)  # as many as in the first layer, before it is reduced
        binding = self._prefill.io_binding()
        self._bind_inputs(binding, embeds, positions)
        binding.bind_cpu_input("visual_start", np.asarray([visual_start], np.int64))
        for name in ("logits", "keep_index"):
            binding.bind_output(name, "cpu")
        for name in self._past:
            binding.bind_output(present_of(name), self._device)
        logits, kept, *tensors = _run(self._prefill, binding, 0)
        if self._rows is None:
            cache: KvCache = self._growing_cache(tensors)
        else:
            cache = self._static_cache([tensor.numpy() for tensor in tensors])
        return _last(logits), cache, kept.numpy()[0]

    def _step(self, cache: KvCache, embeds: Array, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        known = max(cache.lengths)
        binding = cache.bind(self._session)
        self._bind_inputs(binding, embeds, positions)
        if "attention_mask" in self._shapes:
            binding.bind_cpu_input("attention_mask", np.ones((1, known + len(positions)), np.int64))
        logits, *present = _run(self._session, binding, known)
        cache.take(present, len(positions))
        return _last(logits)

    def _bind_inputs(self, binding: ort.IOBinding, embeds: Array, positions: Sequence[int]) -> None:
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds, self.dtype)[None])
        binding.bind_cpu_input("position_ids", np.asarray([positions], np.int64))


def _run(session: ort.InferenceSession, binding: ort.IOBinding, known: int) -> list[ort.OrtValue]:
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # ONNX Runtime raises classes of its own without a common base
        raise EngineError(
            f"the decoder failed after {known} tokens: {error}",
            fix="free memory, give a shorter prompt, or export with a smaller --keep",
        ) from error
    outputs: list[ort.OrtValue] = binding.get_outputs()
    return outputs


def _last(logits: ort.OrtValue) -> npt.NDArray[np.float32]:
    """[1, S, V] → [V], a copy: the step after this one may write where these are."""
    return np.array(logits.numpy()[0, -1], np.float32)
