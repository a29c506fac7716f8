"""Builds a bundle's engines: reuses what is as it would be made again, makes the rest, and puts them in place whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from fico_export.build import preflight, process
from fico_export.build.compile import Task
from fico_export.build.jobs import Job
from fico_export.build.library import Builder
from fico_export.bundle import files
from fico_export.bundle.engines import FOLDER, Build, Engine, Options
from fico_export.bundle.output import replace_engines, working_folder
from fico_export.devices.nvidia import RTX
from fico_export.errors import BundleError, ConfigError
from fico_export.progress import Progress, Silent

TIMING_CACHE = "timing.cache"
_PARTS = 1000  # of a build, as far as progress tells them apart


@dataclass(frozen=True)
class Row:
    """What became of one graph; seconds and memory are None for an engine that was reused."""

    name: str
    file: Path
    size: int
    reused: bool
    parse_seconds: float | None = None
    build_seconds: float | None = None
    peak_bytes: int | None = None


def build(
    bundle: Path,
    target: str,
    jobs: Sequence[Job],
    builder: Builder,
    options: Options,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Row]:
    """Make the engines of some graphs, in `<bundle>/trt/<target>`.

    Engines are made one after another, each in a process of its own. What is there is left alone until the new ones are whole.

    Args:
        bundle: its folder.
        target: a target's name.
        jobs: the graphs.
        builder: the library and what it builds for.
        options: what it is told.
        force: make again what could be reused, and drop what was built otherwise.
        progress: told of each engine.

    Raises:
        BuildError: TensorRT refused a graph.
        ConfigError: memory does not suffice, engines that are there and not to be built were built otherwise, or another build of
            the bundle is at work.
        DiskError: the disk does not.
    """
    with _alone(bundle):
        return _build(bundle, target, jobs, builder, options, force, progress or Silent())


@contextmanager
def _alone(bundle: Path) -> Iterator[None]:
    """Refuse a second build of a bundle: each would put its engines in the place of the other's."""
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(bundle, os.O_RDONLY)  # the system drops the lock with its process, whatever ends it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(
            f"another fico build of {bundle} is at work", fix="wait until it has ended; it goes on by itself"
        ) from error
    finally:
        os.close(handle)


def _build(
    bundle: Path,
    target: str,
    jobs: Sequence[Job],
    builder: Builder,
    options: Options,
    force: bool,
    progress: Progress,
) -> list[Row]:
    folder = bundle / FOLDER / target
    old = _old(bundle, target, progress)
    same = old is not None and _same(old, builder, options)
    names = {job.name for job in jobs}
    if old is not None and not same and not force and (left := old.engines.keys() - names):
        raise ConfigError(
            f"{', '.join(sorted(left))} of {folder} was built otherwise ({_difference(old, builder, options)}), and one folder "
            "has engines of one kind",
            fix="build all graphs anew (drop --graph), give the same options, or --force to drop it",
        )
    engines = dict(old.engines) if old is not None and same else {}
    engines = {name: engine for name, engine in engines.items() if (folder / engine.file).is_file()}
    reused = {
        job.name
        for job in jobs
        if not force and job.name in engines and _good(folder, engines[job.name], job)
    }
    missing = [job for job in jobs if job.name not in reused]
    preflight.require_room(missing, builder.runtime, folder)
    rows = {name: Row(name, folder / engines[name].file, engines[name].size, reused=True) for name in reused}
    if not missing:  # a bundle that may only be read is as good
        return [rows[job.name] for job in jobs]
    full = "free some space on the bundle's disk, or build fewer graphs with --graph"
    with working_folder(folder, full=full, denied=f"make {bundle} a folder that you may write to") as work:
        if same and (folder / TIMING_CACHE).is_file():
            shutil.copyfile(folder / TIMING_CACHE, work / TIMING_CACHE)
        for number, job in enumerate(missing):
            engines[job.name], rows[job.name] = _make(bundle, folder, job, builder, options, work, progress)
            # With other options the old engines stay until all the new are there.
            if same or old is None or number == len(missing) - 1:
                _publish(work, folder, target, builder, options, engines)
    return [rows[job.name] for job in jobs]


def built(bundle: Path, target: str) -> set[str]:
    """The graphs that have an engine for a target."""
    try:
        return set(Build.load(bundle, target).engines)
    except BundleError:
        return set()


def _old(bundle: Path, target: str, progress: Progress) -> Build | None:
    try:
        return Build.load(bundle, target)
    except BundleError as error:
        if (bundle / FOLDER / target / "build.json").exists():
            progress.warn(f"{error.what}: all engines are made anew")
        return None


def _make(
    bundle: Path, folder: Path, job: Job, builder: Builder, options: Options, work: Path, progress: Progress
) -> tuple[Engine, Row]:
    progress.stage(f"build {job.name}", parts=_PARTS)
    told = 0

    def tell(done: float) -> None:
        nonlocal told
        progress.advance(round(done * _PARTS) - told)
        told = round(done * _PARTS)

    path, cache = work / f"{job.name}.engine", work / TIMING_CACHE
    task = Task(
        runtime=builder.runtime,
        graph=(bundle / job.graph.file).resolve(),
        profiles=job.profiles,
        options=options,
        compute_capabilities=tuple(builder.compute_capabilities) if builder.runtime == RTX.runtime else (),
        timing_cache=cache if cache.is_file() else None,
    )
    made = process.make(task, path, cache, tell)
    size = path.stat().st_size
    engine = Engine(
        file=path.name,
        sha256=files.sha256(path),
        size=size,
        sources=job.sources,
        profiles=job.profiles,
        seconds=round(made.parse_seconds + made.build_seconds, 3),
        peak_bytes=made.peak_bytes,
    )
    row = Row(
        job.name, folder / path.name, size, False, made.parse_seconds, made.build_seconds, made.peak_bytes
    )
    return engine, row


def _publish(
    work: Path, folder: Path, target: str, builder: Builder, options: Options, engines: dict[str, Engine]
) -> None:
    """Put the engines, old and new, and what lies beside them, in place at once."""
    whole, cache = work / "whole", work / TIMING_CACHE
    whole.mkdir()
    for engine in engines.values():
        made = work / engine.file
        _link(made if made.is_file() else folder / engine.file, whole / engine.file)
    if cache.is_file():
        _link(cache, whole / TIMING_CACHE)
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.is_dir():  # of trtexec, as its scripts
            shutil.copytree(other, whole / other.name, copy_function=_link)
        elif other.suffix == ".sh":
            _link(other, whole / other.name)
    build = Build(
        target=target,
        runtime=builder.runtime,
        version=builder.version,
        platform=builder.platform,
        compute_capabilities=builder.compute_capabilities,
        gpu=builder.gpu,
        driver=builder.driver,
        options=options,
        timing_cache_sha256=files.sha256(cache) if cache.is_file() else None,
        engines=engines,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    build.save(whole)
    replace_engines(whole, folder)


def _link(source: str | Path, to: str | Path) -> None:
    try:
        os.link(source, to)
    except OSError:  # a file system without hard links
        shutil.copy2(source, to)


def _same(old: Build, builder: Builder, options: Options) -> bool:
    return not _difference(old, builder, options)


def _difference(old: Build, builder: Builder, options: Options) -> str:
    """What of an earlier build is not as it would be now, in words; empty for nothing."""
    was = {**old.model_dump(), **old.options.model_dump()}
    now = {
        "runtime": builder.runtime,
        "version": builder.version,
        "platform": builder.platform,
        "compute_capabilities": builder.compute_capabilities,
        **({"gpu": builder.gpu} if builder.runtime != RTX.runtime else {}),
        **options.model_dump(),
    }
    return ", ".join(f"{key} {was[key]}, now {value}" for key, value in now.items() if was[key] != value)


def _good(folder: Path, engine: Engine, job: Job) -> bool:
    path = folder / engine.file
    return (
        engine.sources == job.sources
        and engine.profiles == job.profiles
        and path.stat().st_size == engine.size
        and files.sha256(path) == engine.sha256
    )
