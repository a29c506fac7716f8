"""The decoder of a bundle on engines: a static cache on the GPU, prefill in the pieces that its profiles take, decode as a CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fico_export.bundle.manifest import Manifest
from fico_export.errors import EngineError, InputError
from fico_export.runtime.backends.base import Array, present_of, require_rows
from fico_export.runtime.backends.trt.cuda import DeviceMemory, Stream
from fico_export.runtime.backends.trt.engine import Engine
from fico_export.runtime.backends.trt.lane import Lane
from fico_export.runtime.backends.trt.placement import Layout
from fico_export.runtime.backends.trt.profiles import chunk_sizes, largest


class Buffers:
    """Memory for caches, lent and taken back: a captured graph knows its addresses, and to allocate a gigabyte takes time."""

    def __init__(self, size: int, stream: Stream) -> None:
        self._size, self._stream = size, stream
        self._unused: list[DeviceMemory] = []

    def lend(self, borrower: object) -> DeviceMemory:
        """Memory for as long as the borrower lives.

        Raises:
            EngineError: the GPU has not so much left.
        """
        memory = self._unused.pop() if self._unused else DeviceMemory(self._size)
        weakref.finalize(borrower, self._unused.append, memory)
        # Rows that are not filled get no weight, and nothing times NaN would be NaN: memory may hold it by chance, or of a
        # conversation that overflowed.
        self._stream.clear(memory)
        return memory


class EngineCache:
    """Keys and values of a conversation, in a buffer that it borrows when the first token comes.

    Attributes:
        lengths: tokens in the cache of each layer.
    """

    def __init__(self, buffers: Buffers, layers: int) -> None:
        self._buffers = buffers
        self._memory: DeviceMemory | None = None
        self.lengths = [0] * layers

    @property
    def memory(self) -> DeviceMemory:
        """The buffer.

        Raises:
            EngineError: the GPU has no room for one.
        """
        if self._memory is None:
            self._memory = self._buffers.lend(self)
        return self._memory

    def drop_last(self, count: int) -> None:
        """Leaves the rows where they are; new tokens are written over them."""
        self.lengths = [length - count for length in self.lengths]


class EngineDecoder:
    """Runs prefill and decode as `decoder.Decoder` does, on engines.

    Args:
        manifest: of the bundle, whose decoder has a static cache.
        open_engine: loads the engine of a graph by its name.
        graphs: whether decode steps run as CUDA graphs.

    Attributes:
        reduces: whether a prompt with a picture must go through `prefill`, into an empty cache.
        dtype: of embeddings and caches.

    Raises:
        EngineError: an engine cannot be loaded.
    """

    def __init__(
        self, manifest: Manifest, open_engine: Callable[[str], Engine], *, graphs: bool = True
    ) -> None:
        self.reduces = manifest.reduction.in_decoder
        self._layers, self._graphs = manifest.decoder.layers, graphs
        self._engine = open_engine(manifest.decoder_name)
        self._starter = open_engine("decoder_prefill") if self.reduces else None
        self._past = manifest.graph(manifest.decoder_name).past
        self._layout = cache_layout(manifest)
        self._buffers = Buffers(self._layout.size, self._engine.device.stream)
        self._lanes: dict[tuple[str, int, bool], Lane] = {}
        self.dtype = self._engine.dtype("inputs_embeds")

    @property
    def rows(self) -> int:
        """Tokens that the cache of a conversation holds."""
        return self._layout.rows[0]

    def new_cache(self) -> EngineCache:
        """An empty cache; it takes no memory yet."""
        return EngineCache(self._buffers, self._layers)

    def close(self) -> None:
        """Nothing: engines go with this object, and caches hold none."""

    def append(self, cache: EngineCache, embeds: Array, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        """Run new tokens after those in the cache, which grows by them.

        Args:
            cache: of this decoder; it stays as it was where running fails.
            embeds: [S, C] in the decoder's precision.
            positions: S position ids.

        Returns:
            Logits [V] after the last token.

        Raises:
            InputError: more tokens than the cache has rows.
            EngineError: the engine failed, such as for lack of memory.
        """
        require_rows(max(cache.lengths), len(positions), self.rows)
        before, start = cache.lengths, 0
        try:
            for size in self._chunks(len(positions)):
                chunk = slice(start, start + size)
                logits = self._step(cache, embeds[chunk], positions[chunk])
                cache.lengths = [length + size for length in cache.lengths]
                start += size
        except BaseException:
            cache.lengths = before
            raise
        return logits

    def prefill(
        self, embeds: Array, positions: Sequence[int], visual_start: int
    ) -> tuple[npt.NDArray[np.float32], EngineCache, npt.NDArray[np.int64]]:
        """Run a prompt with one picture, whose tokens are reduced on the way.

        Args:
            embeds: [S, C] in the decoder's precision.
            positions: S position ids.
            visual_start: the row where the picture's tokens begin.

        Returns:
            Logits [V] after the last token, the cache, and which of the picture's tokens [K] its last layer holds.

        Raises:
            InputError: more tokens than the engine or the cache takes.
            EngineError: the engine failed, such as for lack of memory.
        """
        assert self._starter is not None, "this decoder does not reduce: append to an empty cache"
        require_rows(0, len(positions), self.rows)  # as many as in the first layer, before it is reduced
        most = largest(self._starter.profiles, "inputs_embeds")[1]
        if len(positions) > most:
            raise InputError(
                f"a prompt of {len(positions)} tokens with a picture; the engine of decoder_prefill takes {most}",
                fix="shorten the prompt, or build the engines again with `fico build`",
            )
        feeds = self._feeds(embeds, positions) | {"visual_start": np.asarray([visual_start], np.int64)}
        profile = self._starter.profile_of({name: array.shape for name, array in feeds.items()})
        lane = self._lane(self._starter, profile, (), graphs=False)
        cache = self.new_cache()
        results = lane.run(cache.memory, feeds, [0] * len(self._past))
        cache.lengths = list(lane.rows[::2])
        return _last(results["logits"]), cache, results["keep_index"][0]

    def _step(self, cache: EngineCache, embeds: Array, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        engine, lengths = self._engine, cache.lengths
        several = engine.shapes["past_lengths"][0] > 1
        feeds = self._feeds(embeds, positions) | {
            "past_lengths": np.asarray(lengths if several else lengths[:1], np.int64)
        }
        profile = engine.profile_of({name: array.shape for name, array in feeds.items()})
        # A captured graph belongs to one context at one shape, so decoding has a context of its own.
        alone = len(positions) == 1 and self._graphs
        lane = self._lane(engine, profile, self._past, graphs=alone)
        return _last(lane.run(cache.memory, feeds, [n for n in lengths for _ in range(2)])["logits"])

    def _lane(self, engine: Engine, profile: int, past: Sequence[str], *, graphs: bool) -> Lane:
        key = (engine.name, profile, graphs)
        if key not in self._lanes:
            present = [present_of(name) for name in self._past]
            self._lanes[key] = Lane(engine, profile, self._layout, past, present, graphs=graphs)
        return self._lanes[key]

    def _feeds(self, embeds: Array, positions: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        return {
            "inputs_embeds": np.asarray(embeds, self.dtype)[None],
            "position_ids": np.asarray([positions], np.int64),
        }

    def _chunks(self, count: int) -> list[int]:
        lengths = [(p["inputs_embeds"][0][1], p["inputs_embeds"][1][1]) for p in self._engine.profiles]
        sizes = chunk_sizes(count, lengths)
        if sizes is None:
            raise EngineError(
                f"{count} tokens cannot be cut into pieces that the engine {self._engine.name} takes: {lengths}",
                fix="build the engines again with `fico build`",
            )
        return sizes


def cache_layout(manifest: Manifest) -> Layout:
    """How the cache of a conversation lies in memory, of a bundle whose cache is static."""
    graph, shape = manifest.graph(manifest.decoder_name), manifest.decoder
    rows, names = manifest.cache_rows, graph.past
    assert rows is not None, "growing caches are refused before"
    dtype = np.dtype(next(i.dtype for i in graph.inputs if i.name == names[0]))
    return Layout(shape.kv_heads, shape.head_dim * dtype.itemsize, (rows,) * len(names))


def _last(logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """[1, 1, V] → [V]."""
    return np.asarray(logits[0, -1], np.float32)
