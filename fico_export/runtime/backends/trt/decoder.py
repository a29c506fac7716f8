"""The decoder of a bundle on engines: a static cache on the GPU, prefill in the pieces that its profiles take, decode as a CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from fico_export.bundle import graph_names
from fico_export.bundle.manifest import Manifest
from fico_export.errors import EngineError, InputError
from fico_export.runtime.backends.base import Array, Step, present_of, require_rows, visual_input
from fico_export.runtime.backends.slots import Slots, moves, starts, with_room
from fico_export.runtime.backends.steps import Rows, inputs, require_logits, run_all, runs
from fico_export.runtime.backends.trt.cuda import DeviceMemory, Stream
from fico_export.runtime.backends.trt.engine import Engine
from fico_export.runtime.backends.trt.lane import Lane
from fico_export.runtime.backends.trt.placement import Copy2D, Layout
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


class EnginePool(Slots["EngineCache"]):
    """The caches of a batch in one buffer, which is borrowed for as long as one of them lives.

    Raises:
        EngineError: the GPU has no room for one.
    """

    def __init__(self, buffers: Buffers, layout: Layout, stream: Stream) -> None:
        super().__init__(layout.batch)
        self.memory, self._layout, self._stream = buffers.lend(self), layout, stream

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros."""
        for start, size in self._layout.slot(slot):
            self._stream.clear(self.memory, start, size)

    def receive(self, cache: EngineCache) -> None:
        """Give a cache of another pool a slot of this one, with what it holds."""
        before, left, slot = cache.pool, cache.slot, self.enter(cache)
        pieces = zip(self._layout.slot(slot), self._layout.slot(left), strict=True)
        whole = [Copy2D(to, size, source, size, size, 1) for (to, size), (source, _) in pieces]
        try:
            self._stream.place(self.memory, before.memory, whole)
        except BaseException:
            self.leave(slot)
            raise
        before.leave(left)
        cache.place = self, slot


class EngineCache:
    """Keys and values of a conversation, in a slot that it takes when the first token comes.

    Attributes:
        lengths: tokens in the cache of each layer.
        place: pool and slot, once it has one.
    """

    def __init__(self, find: Callable[[], EnginePool], layers: int) -> None:
        self._find = find
        self.place: tuple[EnginePool, int] | None = None
        self.lengths = [0] * layers

    @property
    def pool(self) -> EnginePool:
        """Whose slot it has.

        Raises:
            EngineError: the GPU has no room for one.
        """
        return self._taken()[0]

    @property
    def slot(self) -> int:
        """Of the pool; errors as there."""
        return self._taken()[1]

    @property
    def memory(self) -> DeviceMemory:
        """The buffer; errors as of `pool`."""
        return self.pool.memory

    def drop_last(self, count: int) -> None:
        """Leaves the rows where they are; new tokens are written over them."""
        self.lengths = [length - count for length in self.lengths]

    def _taken(self) -> tuple[EnginePool, int]:
        if self.place is None:
            pool = self._find()
            self.place = pool, pool.enter(self)
        return self.place


class EngineDecoder:
    """Runs prefill and decode as `ort.decoder.Decoder` does, on engines.

    Args:
        manifest: of the bundle, whose decoder has a static cache.
        open_engine: loads the engine of a graph by its name.
        graphs: whether decode steps run as CUDA graphs.

    Attributes:
        reduces: whether a prompt with an image must go through `prefill`, into an empty cache.
        dtype: of embeddings and caches.
        max_batch: how many sequences one run takes.

    Raises:
        EngineError: an engine cannot be loaded.
    """

    def __init__(
        self, manifest: Manifest, open_engine: Callable[[str], Engine], *, graphs: bool = True
    ) -> None:
        self.reduces = manifest.reduction.in_decoder
        self._layers, self._planes, self._graphs = manifest.decoder.layers, manifest.planes, graphs
        self._engine = open_engine(manifest.decoder_name)
        self._starter = None
        if self.reduces:
            self._starter = open_engine(graph_names.PREFILL)
            self._starts = manifest.graph(graph_names.PREFILL)
        self._past = manifest.graph(manifest.decoder_name).past
        self._layout = cache_layout(manifest)
        self.max_batch = self._layout.batch
        stream = self._engine.device.stream
        self._buffers = Buffers(self._layout.size, stream)
        pool = partial(EnginePool, self._buffers, self._layout, stream)
        # Of no engine: caches live on where a decoder is dropped to make room.
        self._find = partial(with_room, WeakSet[EnginePool](), pool)
        self._lanes: dict[tuple[str, int, bool], Lane] = {}
        self.dtype = self._engine.dtype("inputs_embeds")

    @property
    def rows(self) -> int:
        """Tokens that the cache of a conversation holds."""
        return self._layout.rows[0]

    def new_cache(self) -> EngineCache:
        """An empty cache; it takes no memory yet."""
        return EngineCache(self._find, self._layers)

    def close(self) -> None:
        """Nothing: engines go with this object, and caches hold none."""

    def step(self, steps: Sequence[Step], rows: Rows = "last") -> list[npt.NDArray[np.float32]]:
        """Run new tokens of several sequences after those in their caches, which grow by them.

        Args:
            steps: of different caches of this decoder; all stay as they were where running fails.
            rows: whether to give the logits after the last token of each, or after all.

        Returns:
            Logits [V] of each sequence, or [S, V].

        Raises:
            BundleError: the graph was exported before, for tokens in one run, and these are not.
            InputError: another number of visual tokens than the graph takes; or more tokens than a cache has rows.
            ConfigError: logits after all tokens, and the engine gives those after the last alone.
            EngineError: the engine failed, such as for lack of memory.
        """
        require_logits(rows, self._engine.shapes["logits"][1])
        for step in steps:
            require_rows(max(step.cache.lengths), len(step.embeds), self.rows)
        single = [step.cache for step in steps if len(step.embeds) == 1]
        for cache, pool in moves(single, self.max_batch):
            pool.receive(cache)
        planned = runs(steps, self.max_batch, lambda cache: id(cache.pool), self._chunks)
        return run_all(steps, planned, rows, self._step)

    def prefill(
        self,
        embeds: Array,
        positions: npt.NDArray[np.int64],
        visual_rows: npt.NDArray[np.int64],
        planes: Array | None = None,
    ) -> tuple[npt.NDArray[np.float32], EngineCache, npt.NDArray[np.int64]]:
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
            InputError: another number of visual tokens than the graph takes; or more tokens than the engine or the cache takes.
            EngineError: the engine failed, such as for lack of memory.
        """
        assert self._starter is not None, "this decoder does not reduce: step from an empty cache"
        require_rows(0, len(embeds), self.rows)  # as many as in the first layer, before it is reduced
        most = largest(self._starter.profiles, "inputs_embeds")[1]
        if len(embeds) > most:
            raise InputError(
                f"a prompt of {len(embeds)} tokens with an image; the engine of decoder_prefill takes {most}",
                fix="shorten the prompt, or build the engines again with `fico build`",
            )
        feeds = inputs([Step(None, embeds, positions, planes)], [0], 1, self.dtype, self._planes)
        feeds.update(visual_input(self._starts, visual_rows))
        profile = self._starter.profile_of({name: array.shape for name, array in feeds.items()})
        lane = self._lane(self._starter, profile, (), graphs=False)
        cache = self.new_cache()
        results = lane.run(cache.memory, feeds, {0: [0] * len(self._past)})
        cache.lengths = list(lane.rows[::2])
        return np.asarray(results["logits"][0, -1], np.float32), cache, results["keep_index"][0]

    def _step(self, steps: Sequence[Step]) -> list[npt.NDArray[np.float32]]:
        """One run of the engine: logits [1, V] of each sequence."""
        engine, count, caches = self._engine, len(steps[0].embeds), [step.cache for step in steps]
        pool, slots = caches[0].pool, [cache.slot for cache in caches]
        begin, crowded = starts(pool, slots, count, self.rows)
        told = caches[0].lengths if self.max_batch == 1 else begin
        feeds = inputs(steps, slots, self.max_batch, self.dtype, self._planes)
        feeds["past_lengths"] = np.asarray(told[: engine.shapes["past_lengths"][0]], np.int64)
        profile = engine.profile_of({name: array.shape for name, array in feeds.items()})
        # A captured graph belongs to one context at one shape, so decoding has a context of its own.
        lane = self._lane(engine, profile, self._past, graphs=count == 1 and self._graphs)
        at = {slot: [n for n in c.lengths for _ in range(2)] for slot, c in zip(slots, caches, strict=True)}
        logits = lane.run(pool.memory, feeds, at, crowded)["logits"]
        for cache in caches:
            cache.lengths = [length + count for length in cache.lengths]
        return [np.asarray(logits[slot], np.float32) for slot in slots]

    def _lane(self, engine: Engine, profile: int, past: Sequence[str], *, graphs: bool) -> Lane:
        key = (engine.name, profile, graphs)
        if key not in self._lanes:
            present = [present_of(name) for name in self._past]
            self._lanes[key] = Lane(engine, profile, self._layout, past, present, graphs=graphs)
        return self._lanes[key]

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
    """How the caches of a batch lie in memory, of a bundle whose cache is static."""
    graph, shape = manifest.graph(manifest.decoder_name), manifest.decoder
    rows, names = manifest.cache_rows, graph.past
    assert rows is not None, "growing caches are refused before"
    past = next(i for i in graph.inputs if i.name == names[0])
    row_bytes = shape.head_dim * np.dtype(past.dtype).itemsize
    return Layout(shape.kv_heads, row_bytes, (rows,) * len(names), int(past.shape[0]))
