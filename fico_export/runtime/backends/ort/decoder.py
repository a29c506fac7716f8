"""The decoder graph, run by I/O binding: its KV cache stays on the device and is handed from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fico_export.bundle import graph_names
from fico_export.bundle.manifest import Manifest
from fico_export.errors import EngineError, InputError
from fico_export.runtime.backends.base import Array, Cache, Step, present_of, require_rows, visual_input
from fico_export.runtime.backends.ort.cache import Store
from fico_export.runtime.backends.ort.growing import GrowingStore
from fico_export.runtime.backends.ort.pools import PoolStore, RowsPool, SharedPool, StaticPool
from fico_export.runtime.backends.ort.sessions import CPU, open_session
from fico_export.runtime.backends.steps import Rows, inputs, require_logits, run_all, runs

# Tokens run at once. More are no faster, and the memory of a step grows with their number.
CHUNK = 512


class Decoder:
    """Runs prefill and decode on the decoder of a bundle, which is one graph, or two where it reduces visual tokens.

    Attributes:
        reduces: whether a prompt with an image must go through `prefill`, into an empty cache.
        dtype: of embeddings and caches.
        max_batch: how many sequences one run takes.
    """

    def __init__(self, folder: Path, manifest: Manifest, provider: str = CPU, threads: int = 0) -> None:
        self.reduces = manifest.reduction.in_decoder
        self.max_batch = manifest.max_batch
        graph = manifest.graph(manifest.decoder_name)
        self._session = open_session(folder / graph.file, provider, threads)
        self._device = "cpu" if provider == CPU else "cuda"
        self._context = manifest.decoder.context
        self._shapes, self._past = graph.shapes(), graph.past
        self._rows, self._planes = manifest.cache_rows, manifest.planes
        # Whether past and present are one buffer: then they have one length, where else present has one of its own.
        self._shares = self._shapes["past_key_values.0.key"] == self._shapes["present.0.key"]
        self.dtype = np.dtype(graph.inputs[0].dtype)
        self._store = self._make_store(manifest)
        self._prefill: ort.InferenceSession | None = None
        if self.reduces:
            self._starts = manifest.graph(graph_names.PREFILL)
            self._prefill = open_session(folder / self._starts.file, provider, threads)

    def new_cache(self) -> Cache:
        """An empty cache."""
        return self._store.new()

    def close(self) -> None:
        """Let the graphs go, and the caches live on: those that grow are tensors of a session, and would keep it in memory."""
        self._store.release()

    def _make_store(self, manifest: Manifest) -> Store:
        graph, shape = manifest.graph(manifest.decoder_name), manifest.decoder
        empty = np.zeros((self.max_batch, shape.kv_heads, 0, shape.head_dim), self.dtype)
        if self._rows is not None:
            kind = StaticPool if self._shares else RowsPool
            return PoolStore(shape.layers, lambda filled: kind(graph, self.dtype, self._device, filled))
        if self._shares:
            return PoolStore(shape.layers, lambda filled: SharedPool(graph.past, empty, shape.context))
        masked = "attention_mask" in self._shapes
        return GrowingStore(graph.past, empty[:1], self._device, masked=masked)

    def step(self, steps: Sequence[Step], rows: Rows = "last") -> list[npt.NDArray[np.float32]]:
        """Run new tokens of several sequences after those in their caches, which grow by them.

        Args:
            steps: of different caches of this decoder; all stay as they were where running fails.
            rows: whether to give the logits after the last token of each, or after all.

        Returns:
            Logits [V] of each sequence, or [S, V].

        Raises:
            InputError: more tokens or a larger position than the model takes, or more than a static cache has room for.
            ConfigError: logits after all tokens, and the graph gives those after the last alone.
            EngineError: ONNX Runtime failed, such as for lack of memory.
        """
        require_logits(rows, self._shapes["logits"][1])
        self._require_positions(steps)
        for step in steps:
            self._store.reserve(step.cache, len(step.embeds))
        if single := [step.cache for step in steps if len(step.embeds) == 1]:
            self._store.gather(single)
        planned = runs(steps, self.max_batch, self._store.together, _pieces)
        return run_all(steps, planned, rows, lambda cut: self._step(cut, rows))

    def prefill(
        self,
        embeds: Array,
        positions: npt.NDArray[np.int64],
        visual_rows: npt.NDArray[np.int64],
        planes: Array | None = None,
    ) -> tuple[npt.NDArray[np.float32], Cache, npt.NDArray[np.int64]]:
        """Run a prompt with one image, whose tokens are reduced on the way.

        Args:
            embeds: [S, C] in the decoder's precision.
            positions: [A, S] position ids.
            visual_rows: [N] the rows where the image's visual tokens stand, ascending.
            planes: [L, S, C], as of a `Step`.

        Returns:
            Logits [V] after the last token, the cache, and which of the image's tokens [K] its last layer holds.

        Raises:
            BundleError: the graph was exported before, for tokens in one run, and these are not.
            InputError: another number of visual tokens than the graph takes; or more tokens than a static cache has room for.
            EngineError: ONNX Runtime failed, such as for lack of memory.
        """
        assert self._prefill is not None, "this decoder does not reduce: step from an empty cache"
        if self._rows is not None:
            require_rows(0, len(embeds), self._rows)  # as many as in the first layer, before it is reduced
        binding = self._prefill.io_binding()
        self._bind_inputs(binding, [Step(None, embeds, positions, planes)], [0], 1)
        for name, array in visual_input(self._starts, visual_rows).items():
            binding.bind_cpu_input(name, array)
        for name in ("logits", "keep_index"):
            binding.bind_output(name, "cpu")
        for name in self._past:
            binding.bind_output(present_of(name), self._device)
        logits, kept, *tensors = _run(self._prefill, binding, [])
        last = np.array(logits.numpy()[0, -1], np.float32)
        return last, self._store.new(tensors), kept.numpy()[0]

    def _step(self, steps: Sequence[Step], rows: Rows) -> list[npt.NDArray[np.float32]]:
        """One run of the graph: logits [1, V] or [S, V] of each sequence, copies, as the next run may write where these are."""
        caches = [step.cache for step in steps]
        with self._store.bound(self._session, caches, len(steps[0].embeds)) as bound:
            self._bind_inputs(bound.binding, steps, bound.rows, bound.size)
            logits, *present = _run(self._session, bound.binding, caches)
            bound.take(present)
        given = logits.numpy()
        return [np.array(given[row, -1:] if rows == "last" else given[row], np.float32) for row in bound.rows]

    def _bind_inputs(
        self, binding: ort.IOBinding, steps: Sequence[Step], rows: Sequence[int], batch: int
    ) -> None:
        for name, array in inputs(steps, rows, batch, self.dtype, self._planes).items():
            binding.bind_cpu_input(name, array)

    def _require_positions(self, steps: Sequence[Step]) -> None:
        """Refuse positions beyond the rotary table, which no kernel checks."""
        if self._rows is not None or not self._shares:
            return
        largest = max(int(step.positions.max()) for step in steps)
        if largest >= self._context:
            raise InputError(
                f"position id {largest}; the model's context is {self._context}",
                fix="shorten the prompt, or start a new conversation",
            )


def _pieces(count: int) -> list[int]:
    """Lengths of at most CHUNK that add up to `count`."""
    return [min(CHUNK, count - start) for start in range(0, count, CHUNK)]


def _run(
    session: ort.InferenceSession, binding: ort.IOBinding, caches: Sequence[Cache]
) -> list[ort.OrtValue]:
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # ONNX Runtime raises classes of its own without a common base
        known = max((max(cache.lengths) for cache in caches), default=0)
        raise EngineError(
            f"the decoder failed after {known} tokens: {error}",
            fix="free memory, give a shorter prompt, or export with a smaller --keep",
        ) from error
    outputs: list[ort.OrtValue] = binding.get_outputs()
    return outputs
