"""Signals that ask the process to stop: the first lets it clean up, a second one ends it at once.

A signal arrives as KeyboardInterrupt in whatever code runs, which may catch it, wrap it in an error of its own or lose it in
a callback. So it is also remembered: what fails after it has been interrupted, and what goes on is stopped at its next step.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable

INTERRUPTED = 130
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_TOGETHER_S = 0.1  # `timeout` sends its signal twice, to the process and to its group

_came = threading.Event()
_done = threading.Event()


def listen(at_once: Callable[[], None]) -> None:
    """Heed the signals; one that the parent has this process ignore (`nohup`) stays ignored.

    Args:
        at_once: called before the process is ended by a second signal.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    atexit.register(_ignore)  # the first to be registered is the last to be called
    if os.name == "posix":
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reader, at_once), daemon=True).start()


def came() -> bool:
    """Whether a signal has come."""
    return _came.is_set()


def done() -> None:
    """The command has ended: a signal that comes now has nothing to interrupt."""
    _done.set()


def check() -> None:
    """Stop here if a signal has come and the code that it met went on.

    Raises:
        KeyboardInterrupt: one has come.
    """
    if came():
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    if not came() and not _done.is_set():  # a later one must not cut the cleaning up short
        _came.set()
        raise KeyboardInterrupt


def _ignore() -> None:
    """Python puts its handlers back as it ends, but for what is ignored: a late signal would take the exit code's place."""
    for number in _SIGNALS:
        if signal.getsignal(number) == _interrupt:
            signal.signal(number, signal.SIG_IGN)


def _watch(reader: int, at_once: Callable[[], None]) -> None:
    """Python's own handler waits until native code returns; this thread need not."""
    first = None
    while number := os.read(reader, 1):
        if number[0] not in _SIGNALS:
            continue
        now = time.monotonic()
        first = now if first is None else first
        if now - first > _TOGETHER_S:
            at_once()
            os._exit(INTERRUPTED)
