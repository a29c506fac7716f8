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
    """What a conversation needs to know of a cache."""

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer; they differ where the decoder reduces visual tokens."""
        ...

    def drop_last(self, count: int) -> None:
        """Forget the last `count` tokens, to continue a conversation from there."""
        ...


class GrowingCache:
    """A pair of device tensors [1, kv heads, length, D] per layer; a graph hands out new ones at every step."""

    def __init__(self, tensors: list[ort.OrtValue], device: str) -> None:
        self.tensors = tensors
        self._device = device

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer."""
        return [int(tensor.shape()[2]) for tensor in self.tensors[::2]]

    def drop_last(self, count: int) -> None:
        """Copies what is left."""
        if count:
            rows = [np.ascontiguousarray(t.numpy()[:, :, : t.shape()[2] - count]) for t in self.tensors]
            self.tensors = [ort.OrtValue.ortvalue_from_numpy(r, self._device, 0) for r in rows]


class SharedCache:
    """A pair of buffers [1, kv heads, rows, D] per layer in host memory, which a graph writes new tokens into.

    The buffers double when they are full, up to the context. The system gives memory to the rows that are written only.

    Args:
        binding: of the session that is to run on them; they are bound to it as they grow.
        names: of its inputs `past_key_values.{i}.key` and `.value`.
        heads: key-value heads.
        head_dim: D.
        dtype: of keys and values.
        context: most tokens that the model can take.

    Attributes:
        binding: the same; all but the buffers is the decoder's to bind.
    """

    def __init__(
        self,
        binding: ort.IOBinding,
        names: Sequence[str],
        heads: int,
        head_dim: int,
        dtype: np.dtype[np.generic],
        context: int,
    ) -> None:
        self.binding = binding
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

    def extend(self, count: int) -> None:
        """Count `count` tokens that a graph has written."""
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
            self.binding.bind_ortvalue_input(name, value)
            self.binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), value)
