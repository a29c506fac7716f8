"""The KV cache of a conversation, and how much of the next prompt is in it already."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from fico_export.errors import ConfigError, FicoError
from fico_export.runtime.backends.base import Cache, Step
from fico_export.runtime.inputs.laid_out import Rows
from fico_export.runtime.inputs.layouts.base import Index
from fico_export.runtime.open_bundle import OpenBundle


class Prefix:
    """A KV cache with what each token in it is: equal keys at equal places have equal entries.

    It is sound only between steps: what an exception interrupted, whichever and wherever, is dropped before the next prompt.

    Attributes:
        kept: [K] which of the tokens handed over for the image the decoder kept, where it reduces; None before it did.
        turn: counts the prompts that it was cut for; what was begun for an earlier one cannot go on.
    """

    kept: npt.NDArray[np.int64] | None = None
    turn: int = 0

    def __init__(self, bundle: OpenBundle) -> None:
        self._bundle = bundle
        # Made when it is first needed: images come before, and memory may hold the tower alone.
        self._cache: Cache | None = None
        self._keys: list[Hashable] = []
        # The first tokens that were reduced together in the decoder.
        self._together = 0
        self._sound = False

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer; none before it is first needed."""
        return [] if self._cache is None else self._cache.lengths

    def forget(self) -> None:
        """Give the cache back; what was begun on it cannot go on."""
        self._sound = False
        self._cache, self._keys, self._together, self.kept = None, [], 0, None
        self.turn += 1

    def distrust(self) -> None:
        """Drop the cache before the next prompt: what is in it gave no answer."""
        self._sound = False

    def require(self, turn: int) -> None:
        """Refuse to go on with what was begun for an earlier prompt, or was interrupted in a step.

        Raises:
            ConfigError: the cache is another's by now, was given back, or holds what nobody knows.
        """
        if turn != self.turn or not self._sound:
            raise ConfigError(
                "this sequence has lost its KV cache: its conversation began another turn or was closed, or a step of it failed",
                fix="begin it again, in a conversation of its own: vlm.chat().begin(…)",
            )

    def share(self, keys: Sequence[Hashable], together: int) -> int:
        """Cut the cache to what it has in common with a new prompt.

        Args:
            keys: of the prompt.
            together: how many of its first tokens are reduced together in the decoder.

        Returns:
            How many tokens of the prompt are in the cache; one at least is left to run.
        """
        with self._bundle.owned():
            shared = self._shared(keys, together) if self._sound else 0
            self._sound = False
            if shared and self._cache is not None:
                self._cache.drop_last(len(self._keys) - shared)
                del self._keys[shared:]
            else:
                self.forget()
                self._cache = self._bundle.decoder.new_cache()
            self._sound = True
            self.turn += 1
        return shared

    def begin(self, keys: Sequence[Hashable], rows: Rows, visual_rows: Index) -> npt.NDArray[np.float32]:
        """Logits [V] after tokens with one image in rows [N], reduced together; their cache replaces the old."""
        with self._bundle.owned():
            self._sound = False
            found = self._bundle.decoder.prefill(rows.embeds, rows.positions, visual_rows, rows.planes)
            logits, self._cache, self.kept = found
            self._keys, self._together = [*keys], len(keys)
            self._sound = True
        return logits

    def _shared(self, keys: Sequence[Hashable], together: int) -> int:
        shared = 0
        while shared < min(len(keys) - 1, len(self._keys)) and keys[shared] == self._keys[shared]:
            shared += 1
        # What the decoder kept of an image depends on all tokens it was reduced with, and it reduces into an empty cache only.
        return shared if together == self._together <= shared else 0

    @classmethod
    def extend(
        cls, bundle: OpenBundle, grown: Sequence[tuple[Prefix, Sequence[Hashable], Rows]]
    ) -> list[npt.NDArray[np.float32]]:
        """Run new tokens of several prefixes in one step.

        Args:
            bundle: of all of them, owned by the thread.
            grown: each prefix, with what its new tokens are and as the decoder takes them.

        Returns:
            Logits [V] after the last new token of each.

        Raises:
            FicoError: as of `Decoder.step`; every cache is as it was.
        """
        for prefix, _, _ in grown:
            prefix._sound = False
        try:
            logits = bundle.decoder.step([Step(prefix._cache, *rows) for prefix, _, rows in grown])
        except FicoError:  # the caches are as they were, which nothing else that is raised promises
            for prefix, _, _ in grown:
                prefix._sound = True
            raise
        for prefix, keys, _ in grown:
            prefix._keys += keys
            prefix._sound = True
        return logits
