r"""All that a person or a program reads of a command: results on stdout, notes and errors on stderr.

Names come from manifests, checkpoints and file names of strangers. What is printed for a person shows their control
characters as `\x1b`, so that none of them reaches the terminal. Only this file writes to the standard streams.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from fico_export.cli import stop
from fico_export.errors import FicoError

# C0 but newline and tab, DEL, C1: an escape sequence begins with one of them.
_CONTROLS = {i: f"\\x{i:02x}" for i in (*range(0x20), *range(0x7F, 0xA0)) if chr(i) not in "\n\t"}
# Line and paragraph separators, and what turns the order of the text after it around.
_MISLEADING = {i: f"\\u{i:04x}" for i in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}
_EVERY = _CONTROLS | _MISLEADING


@dataclass
class Settings:
    """How this command talks.

    Args:
        out: the real stdout while `--json` keeps everything else off it.
        printed: whether an object has been printed there.
    """

    json: bool = False
    debug: bool = False
    verbose: bool = False
    quiet: bool = False
    out: TextIO | None = None
    printed: bool = False


settings = Settings()


def begin(arguments: list[str]) -> None:
    """Take from a command line, before it is parsed, how its errors are to be shown."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    settings.json = any(word == "--json" or word.startswith("--json=") for word in words)
    settings.debug = "--debug" in words
    settings.verbose = settings.quiet = settings.printed = False
    settings.out = None


def visible(text: str) -> str:
    """A text with its control characters spelled out."""
    return text.translate(_EVERY)


def print_json(content: dict[str, Any]) -> None:
    """The one JSON object of a `--json` run, in ASCII: it survives every terminal and every path."""
    stop.check()
    _write_json(content)


def report(error: FicoError) -> int:
    """Tell of the error that ended a command: on stderr, and as an object where `--json` asked for one.

    Returns:
        The exit code.
    """
    interrupted = error.exit_code == stop.INTERRUPTED
    if settings.debug and not interrupted:
        complain("".join(traceback.format_exception(error)).rstrip())
    if settings.json and not settings.printed:
        _write_json({"error": error.what, "hint": error.fix, "exit": error.exit_code})
    complain(error.what if interrupted else f"error: {error.what}\nhint:  {error.fix}")
    return error.exit_code


def put(text: str = "") -> None:
    """A line of a result on stdout."""
    stop.check()
    _write(sys.stdout, visible(text) + "\n")


def write(piece: str) -> None:
    """A piece of a model's answer on stdout: as it is to a file or a pipe, without controls to a terminal."""
    stop.check()
    _write(sys.stdout, piece.translate(_CONTROLS) if sys.stdout.isatty() else piece, flush=True)


def say(text: str) -> None:
    """A note on stderr; none with `--quiet`."""
    if not settings.quiet:
        complain(text)


def complain(text: str, end: str = "\n") -> None:
    """A warning or an error on stderr, whatever the flags."""
    _write(sys.stderr, visible(text) + end, flush=True)


def detail(text: str) -> None:
    """A note on stderr that only `--verbose` asks for."""
    if settings.verbose:
        complain(text)


@contextlib.contextmanager
def json_alone() -> Iterator[None]:
    """Under `--json`, send what anything else prints to stderr: stdout has the object alone."""
    if not settings.json:
        yield
        return
    settings.out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield


def finish() -> None:
    """Write out what is buffered.

    Raises:
        OSError: the disk is full, or whatever else the stream's end says.
    """
    file = settings.out or sys.stdout
    try:
        file.flush()
    except OSError as error:
        _silence(file)
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        raise


def _write_json(content: dict[str, Any]) -> None:
    settings.printed = True
    _write(settings.out or sys.stdout, json.dumps(content) + "\n", flush=True)


def _write(file: TextIO, text: str, *, flush: bool = False) -> None:
    try:
        file.write(text)
        if flush:
            file.flush()
    except BrokenPipeError:
        _silence(file)
        sys.exit(1)  # the reader has left: there is nobody to tell


def _silence(file: TextIO) -> None:
    """Let what is still buffered go nowhere, or the interpreter complains of it at its end."""
    with contextlib.suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, file.fileno())
        os.close(sink)
