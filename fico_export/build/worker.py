"""`python -m fico_export.build.worker`: makes one engine in a process of its own, and says how far it is in JSON lines.

It reads a `Job` as one line of JSON from stdin, and ends when stdin does: it does not outlive who started it. On stdout:

    {"version": "10.3.0"}                     of the library, which is then loaded
    {"done": 0.25}                            the part of the build that is done
    {"made": {"parse_seconds": …}}            the engine is whole; a `Made`
    {"error": "…", "fix": "…", "kind": "…"}  there is none; kind is build, missing or disk
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from fico_export.build.compile import Task, compile_engine
from fico_export.devices.nvidia import Runtime
from fico_export.errors import BuildError
from fico_export.tables import Record

_STEP = 0.005  # finer progress is not worth a line


class Job(Record):
    """What a worker does: says the version of a library and, with a task, makes an engine.

    `timing_cache` is where it leaves what the builder measured, if it keeps that.
    """

    runtime: Runtime
    task: Task | None = None
    engine: Path | None = None
    timing_cache: Path | None = None


class Made(Record):
    """An engine that was made: seconds of parsing and building, and the most host memory of the process."""

    parse_seconds: float
    build_seconds: float
    peak_bytes: int


def main() -> None:
    """Do the job on stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches who started this, who ends it
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints: stdout has JSON alone
    job = Job.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        _say(out, version=str(importlib.import_module(job.runtime).__version__))
        if job.task is not None and job.engine is not None:
            _say(out, made=_make(job.task, job.engine, job.timing_cache, out).model_dump())
    except BuildError as error:
        _say(out, error=error.what, fix=error.fix, kind="build")
    except ImportError as error:
        _say(out, error=str(error), fix="", kind="missing")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _say(out, error=str(error), fix="", kind="disk")


def peak_bytes() -> int:
    """The most memory that this process had; that of the process which forked it is not counted, as getrusage does."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _make(task: Task, engine: Path, timing_cache: Path | None, out: TextIO) -> Made:
    last = 0.0

    def tell(done: float) -> None:
        nonlocal last
        if done >= last + _STEP or done >= 1:
            last = done
            _say(out, done=round(done, 3))

    compiled = compile_engine(task, tell)
    with engine.open("wb") as file:
        file.write(compiled.plan)
    if timing_cache is not None and compiled.timing_cache is not None:
        timing_cache.write_bytes(compiled.timing_cache)
    return Made(
        parse_seconds=compiled.parse_seconds, build_seconds=compiled.build_seconds, peak_bytes=peak_bytes()
    )


def _say(out: TextIO, **content: Any) -> None:
    out.write(json.dumps(content) + "\n")
    out.flush()


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
