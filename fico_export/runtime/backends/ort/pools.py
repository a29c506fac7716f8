"""Caches in buffers that stay: a graph writes new tokens after those that are there, and no token costs a copy.

A pool is the buffers of B sequences, of which each cache has a slot.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import repeat
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import onnxruntime as ort

from fico_export.bundle.manifest import Graph
from fico_export.errors import InputError
from fico_export.runtime.backends.base import Array, present_of, require_rows
from fico_export.runtime.backends.ort.cache import Bound, with_logits
from fico_export.runtime.backends.slots import Slots, moves, starts, with_room

LEAST_ROWS = 256


class SlotCache:
    """Keys and values in a slot of a pool.

    Args:
        pool: whose slot is taken.
        lengths: tokens in the cache of each layer.
    """

    def __init__(self, pool: Pool, lengths: list[int]) -> None:
        self.pool, self.lengths = pool, lengths
        self.slot = pool.enter(self)

    def drop_last(self, count: int) -> None:
        """Leaves the rows where they are; new tokens are written over them."""
        self.lengths = [length - count for length in self.lengths]


class Pool(Slots[SlotCache]):
    """A pair of buffers [B, kv heads, rows, D] per layer, the first rows of which are filled.

    Args:
        names: of the graph's inputs `past_key_values.{i}.key` and `.value`.
        count: B.

    Attributes:
        rows: tokens that a slot has room for.
    """

    def __init__(self, names: Sequence[str], count: int) -> None:
        super().__init__(count)
        self.names = names
        self.rows = 0
        # By session: a binding keeps its session in memory, and the decoder may be closed and loaded again in a conversation.
        self.bindings: WeakKeyDictionary[ort.InferenceSession, dict[tuple[int, int], ort.IOBinding]] = (
            WeakKeyDictionary()
        )

    @abstractmethod
    def reserve(self, cache: SlotCache, count: int) -> None:
        """Make room for `count` more tokens.

        Raises:
            InputError: they do not fit.
        """

    @abstractmethod
    def bound(
        self, session: ort.InferenceSession, caches: Sequence[SlotCache], count: int
    ) -> AbstractContextManager[Bound]:
        """A binding to run `count` new tokens after each of these caches."""

    @abstractmethod
    def edited(self, i: int) -> AbstractContextManager[Array]:
        """A buffer on the host, to be changed in the block."""

    def receive(self, cache: SlotCache) -> None:
        """Give a cache of another pool a slot of this one, with what it holds."""
        before, slot, length = cache.pool, self.enter(cache), max(cache.lengths)
        try:
            for i in range(len(self.names)):
                with self.edited(i) as buffer, before.edited(i) as source:
                    buffer[slot, :, :length] = source[cache.slot, :, :length]
        except BaseException:
            self.leave(slot)
            raise
        before.leave(cache.slot)
        cache.pool, cache.slot = self, slot

    def bind(self, session: ort.InferenceSession, values: Sequence[ort.OrtValue]) -> ort.IOBinding:
        """A binding whose past and present are these."""
        binding = with_logits(session)
        for name, value in zip(self.names, values, strict=True):
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(present_of(name), value)
        return binding


class SharedPool(Pool):
    """Buffers in host memory for a graph whose batch and rows are free.

    A run takes the slots from its first to its last. A slot in between that takes no part writes one row after its last, which
    nothing reads. The buffers double when one is full, up to the context. Only rows that are written take memory.

    Args:
        names: of the graph's inputs `past_key_values.{i}.key` and `.value`.
        empty: [B, kv heads, 0, D] of the cache's dtype.
        context: most tokens that the model can take.
    """

    def __init__(self, names: Sequence[str], empty: Array, context: int) -> None:
        super().__init__(names, len(empty))
        self._context = context
        # A row that those can write to that have no part in a run.
        self._spare = 1 if self.count > 1 else 0
        self.buffers = [np.zeros_like(empty) for _ in names]

    def reserve(self, cache: SlotCache, count: int) -> None:
        """Let the buffers grow.

        Raises:
            InputError: the tokens do not fit the model's context.
        """
        length = cache.lengths[0]
        needed = length + count
        if needed > self._context:
            raise InputError(
                f"{length} tokens and {count} more; the model's context is {self._context}",
                fix="shorten the prompt, start a new conversation, or export with a smaller --keep",
            )
        if needed > self.rows:
            self._grow(needed)

    def receive(self, cache: SlotCache) -> None:
        """Grow as far as the other has."""
        if cache.pool.rows > self.rows:
            self._grow(cache.pool.rows)
        super().receive(cache)

    @contextmanager
    def edited(self, i: int) -> Iterator[Array]:
        """It is on the host."""
        yield self.buffers[i]

    def _grow(self, needed: int) -> None:
        rows = min(self._context, max(LEAST_ROWS, 1 << (needed - 1).bit_length()))
        filled = max(self.filled())
        self.bindings.clear()
        for i, old in enumerate(self.buffers):
            new = np.zeros((*old.shape[:2], rows + self._spare, old.shape[3]), old.dtype)
            new[:, :, :filled] = old[:, :, :filled]
            # One layer at a time, so that no more than one is held twice.
            self.buffers[i] = new
        self.rows = rows

    @contextmanager
    def bound(
        self, session: ort.InferenceSession, caches: Sequence[SlotCache], count: int
    ) -> Iterator[Bound]:
        """The same binding at every step of the same slots: it knows the buffers."""
        first, end = min(c.slot for c in caches), max(c.slot for c in caches) + 1
        known = self.bindings.setdefault(session, {})
        window = (first, end)
        if window not in known:
            values = [ort.OrtValue.ortvalue_from_numpy(buffer[first:end]) for buffer in self.buffers]
            known[window] = self.bind(session, values)
        ends = np.asarray(self.filled()[first:end])[:, None] + count
        mask = (np.arange(ends.max()) < ends).astype(np.int64)
        known[window].bind_cpu_input("attention_mask", mask)
        rows = [cache.slot - first for cache in caches]
        yield Bound(known[window], rows, end - first, partial(_count, caches, count))


class StaticPool(Pool):
    """Buffers of as many sequences and rows as the graph was exported with, which writes new tokens into them.

    Args:
        graph: the decoder's inputs and outputs.
        dtype: of keys and values.
        device: where the buffers are to be.
        filled: rows [1, kv heads, length, D] of each key and value to begin with; none for an empty cache.
    """

    def __init__(
        self, graph: Graph, dtype: np.dtype[np.generic], device: str, filled: Sequence[Array] = ()
    ) -> None:
        shapes = graph.shapes()
        shape = [int(n) for n in shapes[graph.past[0]]]
        super().__init__(graph.past, shape[0])
        self.rows, self._host = shape[2], device == "cpu"
        # Lengths that the graph takes: of each sequence, or of each layer.
        self._told = int(shapes["past_lengths"][0])
        self.buffers: list[Array] = []
        self.values: list[ort.OrtValue] = []
        # One by one, so that those that go to a device are not all held on the host.
        for rows in filled or repeat(None, len(graph.past)):
            buffer = np.zeros(shape, dtype)
            if rows is not None:
                buffer[:, :, : rows.shape[2]] = rows
            self.hold(buffer, device)

    def hold(self, buffer: Array, device: str) -> None:
        """Keep a buffer where it is to be."""
        self.values.append(ort.OrtValue.ortvalue_from_numpy(buffer, device, 0))
        if self._host:
            self.buffers.append(buffer)

    def reserve(self, cache: SlotCache, count: int) -> None:
        """Check that there is room.

        Raises:
            InputError: the tokens do not fit the cache.
        """
        require_rows(max(cache.lengths), count, self.rows)

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros."""
        for i in range(len(self.names)):
            with self.edited(i) as buffer:
                buffer[slot] = 0

    @contextmanager
    def bound(
        self, session: ort.InferenceSession, caches: Sequence[SlotCache], count: int
    ) -> Iterator[Bound]:
        """The same binding at every step of a session, told how many rows are filled."""
        begin, crowded = starts(self, [cache.slot for cache in caches], count, self.rows)
        known = self.bindings.setdefault(session, {})
        whole = (0, self.count)
        if whole not in known:
            known[whole] = self.bind(session, self.values)
        self.tell(known[whole], caches[0].lengths if self.count == 1 else begin)
        with self._spared(crowded, self.rows - count):
            yield Bound(known[whole], [c.slot for c in caches], self.count, partial(_count, caches, count))

    def tell(self, binding: ort.IOBinding, lengths: Sequence[int]) -> None:
        """How many rows are filled, of each sequence or of each layer."""
        binding.bind_cpu_input("past_lengths", np.asarray(lengths[: self._told], np.int64))

    @contextmanager
    def _spared(self, slots: Sequence[int], first: int) -> Iterator[None]:
        """Put back what these slots hold from row `first` on, at the end of the block."""
        kept = []
        for i in range(len(self.names) if slots else 0):
            with self.edited(i) as buffer:
                kept.append([buffer[slot, :, first:].copy() for slot in slots])
        try:
            yield
        finally:
            for i, pieces in enumerate(kept):
                with self.edited(i) as buffer:
                    for slot, rows in zip(slots, pieces, strict=True):
                        buffer[slot, :, first:] = rows

    @contextmanager
    def edited(self, i: int) -> Iterator[Array]:
        """A buffer on the host; of one on a device a copy, which is written back: right and slow."""
        if self._host:
            yield self.buffers[i]
        else:
            copied = np.array(self.values[i].numpy())
            yield copied
            self.values[i].update_inplace(copied)


class RowsPool(StaticPool):
    """The same of a graph that only reads them, and hands out the new rows: they are copied to their place here.

    The buffers are in host memory: a GPU is given all of them at every step, which is right and slow.
    """

    def hold(self, buffer: Array, device: str) -> None:
        """On the host, whatever the device."""
        self._host = True
        super().hold(buffer, "cpu")

    @contextmanager
    def bound(
        self, session: ort.InferenceSession, caches: Sequence[SlotCache], count: int
    ) -> Iterator[Bound]:
        """A new binding: the number of new rows differs from step to step."""
        binding = with_logits(session)
        for name, value in zip(self.names, self.values, strict=True):
            binding.bind_ortvalue_input(name, value)
            binding.bind_output(present_of(name), "cpu")
        self.tell(binding, caches[0].lengths if self.count == 1 else self.filled())
        yield Bound(binding, [c.slot for c in caches], self.count, partial(self._place, caches, count))

    def _place(self, caches: Sequence[SlotCache], count: int, present: list[ort.OrtValue]) -> None:
        """Put the new rows after those that are filled."""
        for i, (buffer, given) in enumerate(zip(self.buffers, present, strict=True)):
            rows = given.numpy()
            for cache in caches:
                start = cache.lengths[i // 2]
                buffer[cache.slot, :, start : start + count] = rows[cache.slot]
        _count(caches, count, present)


class PoolStore:
    """Pools of caches, each for as long as one of its caches lives.

    Args:
        layers: of the decoder.
        make: a pool that holds given rows of a cache, or an empty one.
    """

    def __init__(self, layers: int, make: Callable[[Sequence[Array]], Pool]) -> None:
        self._layers, self._make = layers, make
        self._pools: WeakSet[Pool] = WeakSet()

    def new(self, filled: Sequence[ort.OrtValue] = ()) -> SlotCache:
        """In a slot that is free; one that is filled already has a pool of its own."""
        if filled:
            rows = [value.numpy() for value in filled]
            return SlotCache(self._make(rows), [int(r.shape[2]) for r in rows[::2]])
        return SlotCache(with_room(self._pools, lambda: self._make(())), [0] * self._layers)

    def reserve(self, cache: SlotCache, count: int) -> None:
        """In its pool."""
        cache.pool.reserve(cache, count)

    def gather(self, caches: Sequence[SlotCache]) -> None:
        """In as few pools as can be."""
        for cache, pool in moves(caches, caches[0].pool.count):
            pool.receive(cache)

    def together(self, cache: SlotCache) -> Hashable:
        """Its pool."""
        return id(cache.pool)

    def bound(
        self, session: ort.InferenceSession, caches: Sequence[SlotCache], count: int
    ) -> AbstractContextManager[Bound]:
        """Of their pool."""
        return caches[0].pool.bound(session, caches, count)

    def release(self) -> None:
        """Nothing: buffers are of no session."""


def _count(caches: Iterable[SlotCache], count: int, present: Sequence[ort.OrtValue]) -> None:
    """Count the tokens that are in the buffers now."""
    for cache in caches:
        cache.lengths = [length + count for length in cache.lengths]
