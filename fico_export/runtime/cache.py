"""Keys and values of the tokens seen so far, in either of the forms that decoder graphs take them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fico_export.errors import InputError

Array = npt.NDArray[np.generic]

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
            InputError: they do not fit the model's context.
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

    def reserve(self, count: int) -> None:
        """Nothing: each step makes tensors of its own."""

    def bind(self, session: ort.InferenceSession) -> ort.IOBinding:
        """A new binding, of the tensors as they are."""
        binding = session.io_binding()
        binding.bind_output("logits", "cpu")
        for name, tensor in zip(self._names, self._tensors, strict=True):
            binding.bind_ortvalue_input(name, tensor)
            binding.bind_output(present_of(name), self._device)
        return binding

    def take(self, present: list[ort.OrtValue], count: int) -> None:
        """The new tensors take the place of the old."""
        self._tensors = present


class SharedCache:
    """A pair of buffers [1, kv heads, rows, D] per layer in host memory, which a graph writes new tokens into.

    The buffers double when they are full, up to the context. The system gives memory to the rows that are written only.

    Args:
        session: that is to run on them; they are bound to it as they grow.
        names: of its inputs `past_key_values.{i}.key` and `.value`.
        heads: key-value heads.
        head_dim: D.
        dtype: of keys and values.
        context: most tokens that the model can take.

    """

    def __init__(
        self,
        session: ort.InferenceSession,
        names: Sequence[str],
        heads: int,
        head_dim: int,
        dtype: np.dtype[np.generic],
        context: int,
    ) -> None:
        self._binding = session.io_binding()
        self._binding.bind_output("logits", "cpu")  # the first that is bound is the first that comes out
        self._names = names
        self._context = context
        self._length = 0
        self._buffers = [np.zeros((1, heads, 0, head_dim), dtype) for _ in names]

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer."""
        return [self._length] * (len(self._names) // 2)

    @property
    def rows(self) -> int:
        """Tokens that fit before the buffers must grow."""
        return int(self._buffers[0].shape[2])

    def drop_last(self, count: int) -> None:
        """Leaves the rows where they are; new tokens are written over them."""
        self._length -= count

    def bind(self, session: ort.InferenceSession) -> ort.IOBinding:
        """The same binding at every step: it knows the buffers."""
        return self._binding

    def take(self, present: list[ort.OrtValue], count: int) -> None:
        """Count the tokens that the graph has written into the buffers."""
        self._length += count

    def reserve(self, count: int) -> None:
        """Make room for `count` more tokens.

        Raises:
            InputError: they do not fit the model's context.
        """
        needed = self._length + count
        if needed > self._context:
            raise InputError(
                f"{self._length} tokens and {count} more; the model's context is {self._context}",
                mend="shorten the prompt, start a new conversation, or export with a smaller --keep",
            )
        if needed <= self.rows:
            return
        rows = min(self._context, max(LEAST_ROWS, 1 << (needed - 1).bit_length()))
        for i, (name, old) in enumerate(zip(self._names, self._buffers, strict=True)):
            new = np.zeros((1, old.shape[1], rows, old.shape[3]), old.dtype)
            new[:, :, : self._length] = old[:, :, : self._length]
            # One layer at a time, so that no more than one is held twice.
            self._buffers[i] = new
            value = ort.OrtValue.ortvalue_from_numpy(new)
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(present_of(name), value)


def present_of(name: str) -> str:
    """The output that holds what follows an input `past_key_values.…`."""
    return name.replace("past_key_values.", "present.")
