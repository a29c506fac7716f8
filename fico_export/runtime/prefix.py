"""The KV cache of a conversation, and how much of the next prompt is in it already."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fico_export.runtime.cache import Array
from fico_export.runtime.session import Cache

if TYPE_CHECKING:
    from fico_export.runtime.vlm import Vlm


class Prefix:
    """A KV cache with what each token in it is: equal keys at equal places have equal entries.

    It is sound only between steps: what an exception interrupted, whichever and wherever, is dropped before the next prompt.
    """

    def __init__(self, vlm: Vlm) -> None:
        self._vlm = vlm
        # Made when it is first needed: pictures come before, and memory may hold the tower alone.
        self._cache: Cache | None = None
        self._keys: list[Hashable] = []
        # Tokens of the cache that only make sense together: those of a prompt reduced in the decoder.
        self._fixed = 0
        self._sound = False

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer; none before it is first needed."""
        return [] if self._cache is None else self._cache.lengths

    def forget(self) -> None:
        """Give the cache back."""
        self._sound = False
        self._cache, self._keys, self._fixed = None, [], 0

    def share(self, keys: Sequence[Hashable]) -> int:
        """Cut the cache to what it has in common with a new prompt, and say how many tokens that is; one at least is left to run."""
        with self._vlm.owned():
            shared = self._shared(keys) if self._sound else 0
            self._sound = False
            if shared and self._cache is not None:
                self._cache.drop_last(len(self._keys) - shared)
                del self._keys[shared:]
            else:
                self.forget()
                self._cache = self._vlm.decoder.new_cache()
            self._sound = True
        return shared

    def extend(
        self, keys: Sequence[Hashable], embeds: Array, positions: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Logits [V] after new tokens [S, C] at positions [S], which the cache holds from then on."""
        with self._vlm.owned():
            self._sound = False
            logits = self._vlm.decoder.append(self._cache, embeds, positions)
            self._keys += keys
            self._sound = True
        return logits

    def begin(
        self, keys: Sequence[Hashable], embeds: Array, positions: Sequence[int], visual_start: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Logits [V] and kept tokens [K] of a whole prompt with one picture, reduced on the way; its cache replaces the old."""
        with self._vlm.owned():
            self._sound = False
            logits, self._cache, kept = self._vlm.decoder.prefill(embeds, positions, visual_start)
            self._keys, self._fixed = [*keys], len(keys)
            self._sound = True
        return logits, kept

    def _shared(self, keys: Sequence[Hashable]) -> int:
        shared = 0
        while shared < min(len(keys) - 1, len(self._keys)) and keys[shared] == self._keys[shared]:
            shared += 1
        pictured = any(isinstance(key, tuple) for key in keys[shared:])
        if self._vlm.decoder.reduces and (shared < self._fixed or pictured):
            # What the decoder kept of a picture depends on the whole prompt, and it reduces into an empty cache only.
            return 0
        return shared
