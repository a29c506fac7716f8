"""An answer, and the stream that it comes by: read once, left at any time, by any thread."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from types import TracebackType

from fico_export.errors import ConfigError

STAGES = ("preprocess", "vision", "embed", "prefill", "decode")


@dataclass
class Answer:
    """An answer and what it took.

    Attributes:
        text: what the model said.
        token_ids: its tokens, with the end-of-sequence token where there was one.
        finish_reason: eos, stop (a stop string), length (max_new_tokens), context (no room left) or stopped (`Stream.stop`);
            empty while the answer comes, and where its stream was left early.
        prompt_tokens: tokens of the whole prompt, visual ones included.
        visual_tokens: of these, those that stand for images.
        cached_tokens: of these, those taken from the KV cache of earlier turns.
        stages_ms: time per stage in milliseconds.
        ttft_ms: from the request to the first token: preprocess, vision, embed and prefill.
        tpot_ms: per token after the first; None where there was none.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    visual_tokens: int = 0
    cached_tokens: int = 0
    stages_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    ttft_ms: float = 0.0
    tpot_ms: float | None = None


@dataclass
class Wish:
    """What the reader of an answer asked of the loop that makes it, which looks between two tokens.

    Attributes:
        stop: end the answer here.
        leave: the same, and the turn never was.
    """

    stop: bool = False
    leave: bool = False


class Stream:
    """Pieces of text while they come, read once.

    `answer` may be looked at any time; it is whole when its `finish_reason` is set, which is before the last piece comes. Only
    then is the turn part of its conversation. A stream that is left before, by `close()`, by leaving its `with` block, by
    dropping it or by an exception, leaves nothing there. `stop()` ends the answer where it is: what was said by then is the turn.

    Reading a stream again that was read to its end gives nothing more; one that was left raises a ConfigError.
    """

    def __init__(self, pieces: Generator[str], answer: Answer, wish: Wish) -> None:
        self._pieces = pieces
        self._wish = wish
        self._left = False
        self._ended = False
        self._reading = threading.Lock()
        self.answer = answer

    @property
    def closed(self) -> bool:
        """Whether no more pieces come: the answer is whole, or was left."""
        return self._ended or self._left

    def __iter__(self) -> Stream:
        """The stream itself."""
        return self

    def __next__(self) -> str:
        """The next piece.

        Raises:
            ConfigError: the stream was left early, or another thread is reading it.
            EngineError: the model failed; the turn never was.
        """
        if not self._reading.acquire(blocking=False):
            raise ConfigError(
                "two threads read one stream at once", fix="read it in one thread, and pass the pieces on"
            )
        try:
            self._require_not_left()
            return next(self._pieces)
        except StopIteration:
            self._ended = not self._wish.leave
            self._left = self._wish.leave
            self._require_not_left()  # another thread closed it meanwhile
            raise
        except BaseException:
            self._left = True
            raise
        finally:
            self._reading.release()

    def stop(self) -> Answer:
        """End the answer where it is, with the finish_reason `stopped`: what was said is the turn; where nothing was, there is none.

        Of an answer that is whole or left it changes nothing. It may be called from a signal handler or another thread; then the
        answer ends with the token that is under way.
        """
        self._wish.stop = True
        if self._reading.acquire(blocking=False):
            try:
                if not self.closed:
                    self._left = True  # unless it ends well
                    for _ in self._pieces:
                        pass
                    self._left, self._ended = False, True
            finally:
                self._reading.release()
        return self.answer

    def close(self) -> None:
        """Leave the stream: unless the answer is whole, the turn never was. Any thread may; a second time changes nothing."""
        if self.closed:
            return
        self._wish.leave = True
        if self._reading.acquire(blocking=False):
            try:
                self._pieces.close()
                self._left = not self.closed
            finally:
                self._reading.release()

    def __enter__(self) -> Stream:
        """The stream itself, closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _require_not_left(self) -> None:
        if self._left:
            raise ConfigError(
                "this stream was left before its answer was whole",
                fix="ask again: chat.stream(…), and read it to its end",
            )
