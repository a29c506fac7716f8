"""Caches that a graph hands out anew at every step, longer by the new tokens.

Sequences that ran together stay one tensor, whose shorter ones have padding before their first token: as long as the same run
together, what a step hands out is what the next one takes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import WeakSet

import numpy as np
import onnxruntime as ort

from fico_export.runtime.backends.base import Array, present_of
from fico_export.runtime.backends.ort.cache import Bound, with_logits


class Batch:
    """A pair of device tensors [B, kv heads, T, D] per layer; the first `pads[i]` rows of sequence i are padding."""

    def __init__(self, tensors: list[ort.OrtValue], pads: list[int]) -> None:
        self.tensors, self.pads = tensors, pads
        self.caches: WeakSet[GrowingCache] = WeakSet()

    def rows(self, tensor: int, sequence: int) -> Array:
        """[kv heads, length, D] of a sequence, on the host."""
        whole: Array = self.tensors[tensor].numpy()
        return whole[sequence, :, self.pads[sequence] :]


class GrowingCache:
    """One sequence of a batch."""

    def __init__(self, batch: Batch, row: int, device: str) -> None:
        self.batch, self.row, self._device = batch, row, device
        batch.caches.add(self)

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer."""
        return [int(t.shape()[2]) - self.batch.pads[self.row] for t in self.batch.tensors[::2]]

    def drop_last(self, count: int) -> None:
        """Copies what is left."""
        if count:
            self.leave(count)

    def move(self, batch: Batch, row: int) -> None:
        """Go on as a sequence of another batch."""
        self.batch.caches.discard(self)
        self.batch, self.row = batch, row
        batch.caches.add(self)

    def leave(self, drop: int = 0) -> None:
        """Copy this sequence's rows, without its last tokens, to tensors of their own, so that the shared ones can be freed."""
        rows = [self.batch.rows(i, self.row) for i in range(len(self.batch.tensors))]
        own = [np.array(r[None, :, : r.shape[1] - drop]) for r in rows]
        self.move(Batch([ort.OrtValue.ortvalue_from_numpy(r, self._device, 0) for r in own], [0]), 0)


class GrowingStore:
    """Batches of caches.

    Args:
        names: of the graph's inputs `past_key_values.{i}.key` and `.value`.
        empty: [1, kv heads, 0, D] of the cache's dtype.
        device: where the tensors are.
        masked: whether the graph is told by `attention_mask` what is padding; else a batch is of one.
    """

    def __init__(self, names: Sequence[str], empty: Array, device: str, *, masked: bool) -> None:
        self._names, self._empty, self._device, self._masked = names, empty, device, masked
        self._present = [present_of(name) for name in names]
        self._caches: WeakSet[GrowingCache] = WeakSet()

    def new(self, filled: Sequence[ort.OrtValue] = ()) -> GrowingCache:
        """Of what a graph handed out, or an empty one."""
        values = [*filled] or [self._on_device(self._empty) for _ in self._names]
        cache = GrowingCache(Batch(values, [0]), 0, self._device)
        self._caches.add(cache)
        return cache

    def reserve(self, cache: GrowingCache, count: int) -> None:
        """Nothing: each step makes tensors of its own."""

    def gather(self, caches: Sequence[GrowingCache]) -> None:
        """Nothing: a run puts them together."""

    def together(self, cache: GrowingCache) -> Hashable:
        """All can."""
        return None

    @contextmanager
    def bound(
        self, session: ort.InferenceSession, caches: Sequence[GrowingCache], count: int
    ) -> Iterator[Bound]:
        """A new binding, of the tensors as they are where these caches are one batch, in order."""
        self._caches.update(caches)  # of a decoder that was closed too, whose store is gone
        batch = self._joined(caches)
        binding = with_logits(session)
        for name, present, tensor in zip(self._names, self._present, batch.tensors, strict=True):
            binding.bind_ortvalue_input(name, tensor)
            binding.bind_output(present, self._device)
        if self._masked:
            mask = np.ones((len(caches), batch.tensors[0].shape()[2] + count), np.int64)
            for row, pad in enumerate(batch.pads):
                mask[row, :pad] = 0
            binding.bind_cpu_input("attention_mask", mask)
        yield Bound(binding, range(len(caches)), len(caches), partial(_take, caches, batch))

    def release(self) -> None:
        """Copy the tensors out of the session that made them, which they keep in memory."""
        for batch in {id(cache.batch): cache.batch for cache in self._caches}.values():
            for i, tensor in enumerate(batch.tensors):
                batch.tensors[i] = self._on_device(np.array(tensor.numpy()))

    def _joined(self, caches: Sequence[GrowingCache]) -> Batch:
        batch = caches[0].batch
        if [(c.batch, c.row) for c in caches] == [(batch, i) for i in range(len(batch.pads))]:
            return batch
        lengths = [cache.lengths[0] for cache in caches]
        pads = [max(lengths) - length for length in lengths]
        tensors = []
        for i in range(len(self._names)):
            shape = (len(caches), self._empty.shape[1], max(lengths), self._empty.shape[3])
            joined = np.zeros(shape, self._empty.dtype)
            for row, (cache, pad) in enumerate(zip(caches, pads, strict=True)):
                joined[row, :, pad:] = cache.batch.rows(i, cache.row)
            tensors.append(self._on_device(joined))
        return Batch(tensors, pads)

    def _on_device(self, array: Array) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)


def _take(caches: Sequence[GrowingCache], batch: Batch, present: list[ort.OrtValue]) -> None:
    """The new tensors take the place of the old, from which those that did not run take what is theirs."""
    batch.tensors = present
    if caches[0].batch is batch:  # the same run together as before
        return
    before = {id(cache.batch): cache.batch for cache in caches}
    for row, cache in enumerate(caches):
        cache.move(batch, row)
    for old in before.values():
        for left in [*old.caches]:
            left.leave()
