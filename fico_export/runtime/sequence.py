"""A prompt on its way to an answer: what is to run next, and what becomes of the logits that come back. It runs nothing itself."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fico_export.errors import FicoError
from fico_export.runtime.answer import Answer
from fico_export.runtime.inputs.laid_out import Rows
from fico_export.runtime.inputs.layouts.base import Index
from fico_export.runtime.open_bundle import OpenBundle
from fico_export.runtime.prefix import Prefix
from fico_export.runtime.sampling import Sampler
from fico_export.runtime.streaming import StopStrings, StreamDecoder


@dataclass
class Sequence:
    """Tokens that one after the other become an answer.

    Attributes:
        bundle: that answers.
        prefix: the KV cache, and what is in it.
        keys: what is to run next: what each of these tokens is.
        rows: the same as the decoder takes them; None for a token that was just chosen.
        position: of the token after them.
        sampler: chooses the tokens of the answer.
        stops: strings that end it.
        limit: most tokens that it may have.
        answer: what it is so far.
        visual_rows: [N] rows of the visual tokens in the prompt, where rows from its first on are to be reduced together.
        together: how many these are; 0 where none are.
        error: why it ended without an answer, such as logits that are no numbers; None where it did not.
    """

    bundle: OpenBundle
    prefix: Prefix
    keys: list[Hashable]
    rows: Rows | None
    position: int
    sampler: Sampler
    stops: StopStrings
    limit: int
    answer: Answer
    visual_rows: Index = field(default_factory=lambda: np.zeros(0, np.int64))
    together: int = 0
    error: FicoError | None = None
    _text: StreamDecoder = field(init=False)
    _turn: int = field(init=False)
    _cache_rows: int | None = field(init=False)
    _logits: npt.NDArray[np.float32] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._text = StreamDecoder(self.bundle.formatter.tokenizer)
        self._turn, self._cache_rows = self.prefix.turn, self.bundle.manifest.cache_rows

    def require(self) -> None:
        """Refuse to go on where the cache is no longer this sequence's.

        Raises:
            ConfigError: its conversation began another turn, or was closed; or a step of it failed.
        """
        if self.error is not None:
            raise self.error
        self.prefix.require(self._turn)

    @property
    def waiting(self) -> tuple[list[Hashable], Rows]:
        """What is to run next, and how the decoder takes it."""
        if self.rows is None:
            (token,) = self.answer.token_ids[-1:]
            position = np.array([[self.position - 1]] * self.bundle.layout.axes)
            self.rows = Rows(self.bundle.embed([token]), position)
        return self.keys, self.rows

    def reduce(self) -> bool:
        """Run the tokens that are reduced together, if any wait; whether others are left to run."""
        if self.together:
            keys, rows, together = *self.waiting, self.together
            logits = self.prefix.begin(keys[:together], rows.part(0, together), self.visual_rows)
            self.keys, self.rows, self.together = keys[together:], rows.part(together), 0
            self._logits = None if self.keys else logits
        return self._logits is None

    def give(self, logits: npt.NDArray[np.float32]) -> None:
        """Logits [V] after what was run."""
        self._logits = logits

    def take(self) -> tuple[str, str]:
        """Choose a token by the logits; unless the answer ends, it is what runs next.

        Returns:
            The text that it adds, often empty, and why the answer ends with it, empty where it goes on. Of a sequence with an
            `error` both are empty, and its cache is not used again.
        """
        assert self._logits is not None, "nothing was run"
        try:
            token = self.sampler(self._logits)
        except FicoError as error:
            self.error = error
            self.prefix.distrust()
            return "", ""
        self._logits = None
        answer, eos_ids = self.answer, self.bundle.manifest.tokens.eos_ids
        answer.token_ids.append(token)
        piece = ""
        if token in eos_ids and not self.sampler.sampling.ignore_eos:
            reason = "eos"
        else:
            piece, stopped = self.stops.push(self._text.push(token))
            reason = "stop" if stopped else self._full()
        if reason and reason != "stop":
            rest, stopped = self.stops.push(self._text.flush())
            piece, reason = piece + rest + self.stops.flush(), "stop" if stopped else reason
        answer.text += piece
        self.keys, self.rows, self.position = [token], None, self.position + 1
        return piece, reason

    def _full(self) -> str:
        """Which of the limits ends the answer here; empty where it may go on."""
        if len(self.answer.token_ids) >= self.limit:
            return "length"
        context, rows = self.bundle.manifest.decoder.context, self._cache_rows
        if self.position >= context:
            return "context"
        # Rows run out before positions in a static cache, and where an image takes fewer positions than rows: on several axes.
        if rows is None and self.bundle.layout.axes == 1:
            return ""
        return "context" if max(self.prefix.lengths) >= (context if rows is None else rows) else ""
