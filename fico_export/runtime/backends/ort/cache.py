"""Keys and values of the tokens seen so far, in each of the forms that decoder graphs take them in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort

from fico_export.bundle.manifest import Graph
from fico_export.errors import InputError
from fico_export.runtime.backends.base import Array, present_of, require_rows

LEAST_ROWS = 256


class KvCache(Protocol):
    """What a conversation needs to know of a cache, and a decoder to run on it."""

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer; they differ where the decoder reduces visual tokens."""
        ...

    def drop_last(self, count: int) -> None:
        """Forget the last `count` tokens, to continue a conversation from there."""
        ...

    def reserve(self, count: int) -> None:
        """Make room for `count` more tokens.

        Raises:
            InputError: they do not fit the cache, or the model's context.
        """
        ...

    def bind(self, session: ort.InferenceSession) -> ort.IOBinding:
        """A binding with past and present, whose first output is the logits on the host."""
        ...

    def take(self, present: list[ort.OrtValue], count: int) -> None:
        """Go on from what a graph made of the past and `count` tokens."""
        ...


class GrowingCache:
    """A pair of device tensors [1, kv heads, length, D] per layer; a graph hands out new ones at every step.

    Args:
        tensors: of each layer.
        names: of the graph's inputs `past_key_values.{i}.key` and `.value`.
        device: where the tensors are.
    """

    def __init__(self, tensors: list[ort.OrtValue], names: Sequence[str], device: str) -> None:
        self._tensors, self._names, self._device = tensors, names, device

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer."""
        return [int(tensor.shape()[2]) for tensor in self._tensors[::2]]

    def drop_last(self, count: int) -> None:
        """Copies what is left."""
        if count:
            rows = [np.ascontiguousarray(t.numpy()[:, :, : t.shape()[2] - count]) for t in self._tensors]
            self._tensors = [ort.OrtValue.ortvalue_from_numpy(r, self._device, 0) for r in rows]

    def release(self) -> None:
        """Copy the tensors out of the session that made them, which they keep in memory."""
        for i, tensor in enumerate(self._tensors):
            self._tensors[i] = ort.OrtValue.ortvalue_from_numpy(np.array(tensor.numpy()), self._device, 0)

    def reserve(self, count: int) -> None:
        """Nothing: each step makes tensors of its own."""

    def bind(self, session: ort.InferenceSession) -> ort.IOBinding:
        """A new binding, of the tensors as they are."""
        binding = _with_logits(session)
        for name, tensor in zip(self._names, self._tensors, strict=True):
            binding.bind_ortvalue_input(name, tensor)
            binding.bind_output(present_of(name), self._device)
        return binding

    def take(self, present: list[ort.OrtValue], count: int) -> None:
        """The new tensors take the place of the old."""
        self._tensors = present


class _Buffers(ABC):
    """A pair of buffers per layer, the first rows of which are filled: new tokens are written after them.

    Args:
        names: of the graph's inputs `past_key_values.{i}.key` and `.value`.
        lengths: rows of each layer that are filled.
    """

    def __init__(self, names: Sequence[str], lengths: list[int]) -> None:
        self._names = names
        self._lengths = lengths
        self._values: list[ort.OrtValue] = []
        # By session: a binding keeps its session in memory, and the decoder may be closed and loaded again in a conversation.
        self._bindings: WeakKeyDictionary[ort.InferenceSession, ort.IOBinding] = WeakKeyDictionary()

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer."""
        return [*self._lengths]

    def drop_last(self, count: int) -> None:
        """Leaves the rows where they are; new tokens are written over them."""
        self._lengths = [length - count for length in self._lengths]

    def take(self, present: list[ort.OrtValue], count: int) -> None:
        """Count the tokens that are in the buffers now."""
        self._lengths = [length + count for length in self._lengths]

    @abstractmethod
    def reserve(self, count: int) -> None:
        """Make room for `count` more tokens.

        Raises:
            InputError: they do not fit.
        """

    def bind(self, session: ort.InferenceSession) -> ort.IOBinding:
        """The same binding at every step of a session: it knows the buffers."""
        if session not in self._bindings:
            binding = _with_logits(session)
            for name, value in zip(self._names, self._values, strict=True):
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(present_of(name), value)
            self._bindings[session] = binding
        return self._bindings[session]


class SharedCache(_Buffers):
    """Buffers [1, kv heads, rows, D] in host memory, which a graph writes new tokens into.

    The buffers double when they are full, up to the context. The system gives memory to the rows that are written only.

    Args:
        names: of the graph's inputs `past_key_values.{i}.key` and `.value`.
        heads: key-value heads.
        head_dim: D.
        dtype: of keys and values.
        context: most tokens that the model can take.
    """

    def __init__(
        self,
        names: Sequence[str],
        heads: int,
        head_dim: int,
        dtype: np.dtype[np.generic],
        context: int,
    ) -> None:
        super().__init__(names, [0] * (len(names) // 2))
        self._context = context
        self._buffers = [np.zeros((1, heads, 0, head_dim), dtype) for _ in names]
        self._values = [ort.OrtValue.ortvalue_from_numpy(buffer) for buffer in self._buffers]

    @property
    def rows(self) -> int:
        """Tokens that fit before the buffers must grow."""
        return int(self._buffers[0].shape[2])

    def reserve(self, count: int) -> None:
        """Let the buffers grow.

        Raises:
            InputError: the tokens do not fit the model's context.
        """
        length = self._lengths[0]
        needed = length + count
        if needed > self._context:
            raise InputError(
                f"{length} tokens and {count} more; the model's context is {self._context}",
                fix="shorten the prompt, start a new conversation, or export with a smaller --keep",
            )
        if needed <= self.rows:
            return
        rows = min(self._context, max(LEAST_ROWS, 1 << (needed - 1).bit_length()))
        self._bindings.clear()
        for i, old in enumerate(self._buffers):
            new = np.zeros((1, old.shape[1], rows, old.shape[3]), old.dtype)
            new[:, :, :length] = old[:, :, :length]
            # One layer at a time, so that no more than one is held twice.
            self._buffers[i] = new
            self._values[i] = ort.OrtValue.ortvalue_from_numpy(new)


class StaticCache(_Buffers):
    """Buffers [1, kv heads, M, D] of as many rows as the graph was exported with, which writes new tokens into them.

    Args:
        graph: the decoder's inputs and outputs.
        dtype: of keys and values.
        device: where the buffers are to be.
        filled: rows [1, kv heads, length, D] of each key and value to begin with; none for an empty cache.
    """

    def __init__(
        self,
        graph: Graph,
        dtype: np.dtype[np.generic],
        device: str,
        filled: Sequence[Array] = (),
    ) -> None:
        shapes, names = graph.shapes(), graph.past
        super().__init__(names, [int(r.shape[2]) for r in filled[::2]] or [0] * (len(names) // 2))
        shape = [int(n) for n in shapes[names[0]]]
        self._rows = shape[2]
        self._told = int(
            shapes["past_lengths"][0]
        )  # lengths that the graph takes: one for all layers, or of each
        self._fill(_filled(shape, dtype, filled or repeat(None, len(names))), device)

    def _fill(self, buffers: Iterable[Array], device: str) -> None:
        self._values = [ort.OrtValue.ortvalue_from_numpy(buffer, device, 0) for buffer in buffers]

    def reserve(self, count: int) -> None:
        """Check that there is room.

        Raises:
            InputError: the tokens do not fit the cache.
        """
        require_rows(max(self._lengths), count, self._rows)

    def bind(self, session: ort.InferenceSession) -> ort.IOBinding:
        """The same binding at every step of a session, told how many rows are filled."""
        return self._tell(super().bind(session))

    def _tell(self, binding: ort.IOBinding) -> ort.IOBinding:
        binding.bind_cpu_input("past_lengths", np.asarray(self._lengths[: self._told], np.int64))
        return binding


class RowsCache(StaticCache):
    """The same of a graph that only reads them, and hands out the new rows: they are copied to their place here.

    The buffers are in host memory: a GPU is given all of them at every step, which is right and slow.
    """

    def _fill(self, buffers: Iterable[Array], device: str) -> None:
        self._buffers = [*buffers]

    def bind(self, session: ort.InferenceSession) -> ort.IOBinding:
        """A new binding: the number of new rows differs from step to step."""
        binding = _with_logits(session)
        for name, buffer in zip(self._names, self._buffers, strict=True):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(buffer))
            binding.bind_output(present_of(name), "cpu")
        return self._tell(binding)

    def take(self, present: list[ort.OrtValue], count: int) -> None:
        """Put the new rows after those that are filled."""
        starts = [length for length in self._lengths for _ in ("key", "value")]
        for buffer, start, rows in zip(self._buffers, starts, present, strict=True):
            buffer[:, :, start : start + count] = rows.numpy()
        super().take(present, count)


def _with_logits(session: ort.InferenceSession) -> ort.IOBinding:
    binding = session.io_binding()
    binding.bind_output("logits", "cpu")  # the first that is bound is the first that comes out
    return binding


def _filled(
    shape: Sequence[int], dtype: np.dtype[np.generic], given: Iterable[Array | None]
) -> Iterable[Array]:
    """Buffers one by one, so that those that go to a device are not all held on the host."""
    for rows in given:
        buffer = np.zeros(shape, dtype)
        if rows is not None:
            buffer[:, :, : rows.shape[2]] = rows
        yield buffer
