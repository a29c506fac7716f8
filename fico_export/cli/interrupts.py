"""Ctrl-C in a conversation: the first ends the answer, not the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fico_export.runtime.answer import Stream


class Interrupted(KeyboardInterrupt):
    """Ctrl-C where no answer is coming, or a second one while it does; other signals raise KeyboardInterrupt itself."""


class Interrupts:
    """What Ctrl-C does: the first stops the answer that is coming, after its next token; any other raises `Interrupted`."""

    def __init__(self) -> None:
        self._stream: Stream | None = None

    @contextmanager
    def stopping(self, stream: Stream) -> Iterator[None]:
        """Let Ctrl-C stop this answer within the block."""
        self._stream = stream
        try:
            yield
        finally:
            self._stream = None

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Take SIGINT within the block; outside the main thread, which alone gets signals, nothing is done."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Whoever watches for repeated signals must not see these: many may come in a conversation.
        watcher = signal.set_wakeup_fd(-1)
        before = signal.signal(signal.SIGINT, self._heed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            signal.set_wakeup_fd(watcher, warn_on_full_buffer=False)

    def _heed(self, *_: object) -> None:
        stream, self._stream = self._stream, None
        if stream is None or stream.closed:
            raise Interrupted
        stream.stop()
