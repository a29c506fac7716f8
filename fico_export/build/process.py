"""Starts workers, relays what they say, and ends them with whatever ends this."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from fico_export import documents
from fico_export.build.compile import Task
from fico_export.build.worker import Job, Made
from fico_export.bundle.engines import Options
from fico_export.devices import machine
from fico_export.devices.nvidia import JETPACK, RTX, TENSORRT, Runtime, of_runtime
from fico_export.errors import BuildError, ConfigError, DiskError

_LAST_WORDS = 2000  # characters of what a worker that died wrote


def version(runtime: Runtime) -> str:
    """The version of a library that is installed here.

    Raises:
        ConfigError: it is not, or cannot be loaded.
    """
    found = ""
    with closing(_work(Job(runtime=runtime))) as lines:
        for said in lines:
            found = said.get("version", found)
    return found


def make(task: Task, engine: Path, timing_cache: Path | None, on_progress: Callable[[float], None]) -> Made:
    """Make an engine in a process of its own, which is gone at the end, whatever comes.

    Args:
        task: what to make.
        engine: the file to write.
        timing_cache: the file to leave the builder's measurements in.
        on_progress: told the part of the build that is done.

    Raises:
        BuildError: TensorRT refused the graph, or its process died.
        ConfigError: the library is not installed.
        DiskError: the engine did not fit on the disk.
    """
    made: Made | None = None
    job = Job(runtime=task.runtime, task=task, engine=engine, timing_cache=timing_cache)
    with closing(_work(job)) as lines:
        for said in lines:
            if "done" in said:
                on_progress(said["done"])
            if "made" in said:
                made = Made.model_validate(said["made"])
    if made is None:
        raise BuildError(f"the builder of {task.graph.name} ended without a word", fix="report it")
    return made


def _work(job: Job) -> Generator[dict[str, Any], None, None]:
    """What a worker says of a job, line by line.

    Raises:
        BuildError: it failed, or died.
        ConfigError: its library is missing.
        DiskError: the disk is full.
    """
    what = job.task.graph.name if job.task else of_runtime(job.runtime).name
    with tempfile.TemporaryFile() as errors, _worker(errors) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(job.model_dump_json() + "\n")
        process.stdin.flush()
        for line in process.stdout:
            said = documents.parse_object(line, f"what the builder of {what} says", fix="report it")
            if "error" in said:
                raise _error(said, job.runtime)
            yield said
        code = process.wait()
        if code:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip()[-_LAST_WORDS:]
            raise _death(code, what, words, job.task.options if job.task else Options())


@contextmanager
def _worker(errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "fico_export.build.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"},
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _error(said: dict[str, Any], runtime: Runtime) -> Exception:
    if said["kind"] == "missing":
        return ConfigError(
            f"{of_runtime(runtime).name} cannot be loaded: {said['error']}", fix=_install(runtime)
        )
    if said["kind"] == "disk":
        return DiskError(
            f"the engine did not fit: {said['error']}", fix="free some space on the bundle's disk"
        )
    return BuildError(said["error"], fix=said["fix"])


def _install(runtime: Runtime) -> str:
    if runtime == RTX.runtime:
        return RTX.install
    if machine.jetson_linux(Path("/")):
        return (
            f"JetPack brings it: {JETPACK}; a virtual environment sees it when made with "
            "--system-site-packages; then pip install polygraphy"
        )
    return f"{TENSORRT.install}; with --emit-trtexec none is needed here"


def _death(code: int, what: str, words: str, options: Options) -> BuildError:
    if code == -9:
        less = "" if options.low_memory else "--low-memory, "
        return BuildError(
            f"the system ended the builder of {what}: most likely memory ran out",
            fix=f"{less}more swap (`fico doctor`), or stop what else runs",
        )
    return BuildError(
        f"the builder of {what} died (exit code {code}): {words or 'without a word'}",
        fix="report it with these words and the graph",
    )
