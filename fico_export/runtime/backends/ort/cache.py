"""What the decoder needs of keys and values of the tokens seen so far, whichever form its graph takes them in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import onnxruntime as ort

from fico_export.runtime.backends.base import Cache


class Bound(NamedTuple):
    """A run of a graph on some caches.

    Attributes:
        binding: with past, present and their lengths, whose first output is the logits on the host.
        rows: of the batch, in the order of the caches.
        size: of the batch, B.
        take: goes on from what the graph made of the past and the new tokens.
    """

    binding: ort.IOBinding
    rows: Sequence[int]
    size: int
    take: Callable[[list[ort.OrtValue]], None]


class Store(Protocol):
    """Where the caches of a decoder are."""

    def new(self, filled: Sequence[ort.OrtValue] = ()) -> Cache:
        """A cache that holds what a prefill made, [1, kv heads, length, D] of each key and value; none for an empty one."""
        ...

    def reserve(self, cache: Any, count: int) -> None:
        """Make room for `count` more tokens.

        Raises:
            InputError: they do not fit the cache, or the model's context.
        """
        ...

    def gather(self, caches: Sequence[Any]) -> None:
        """Put caches that are about to run where they can run together."""
        ...

    def together(self, cache: Any) -> Hashable:
        """What caches that can run together have in common."""
        ...

    def bound(
        self, session: ort.InferenceSession, caches: Sequence[Any], count: int
    ) -> AbstractContextManager[Bound]:
        """A binding to run `count` new tokens after each of these caches, which are together."""
        ...

    def release(self) -> None:
        """Keep no session in memory for the sake of caches."""
        ...


def with_logits(session: ort.InferenceSession) -> ort.IOBinding:
    """A new binding; what is bound first comes out first."""
    binding = session.io_binding()
    binding.bind_output("logits", "cpu")
    return binding
