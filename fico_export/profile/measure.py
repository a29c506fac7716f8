"""Measure bundles: every one in a process of its own, answering the same question in alternation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fico_export.bundle.manifest import Manifest
from fico_export.devices.memory import available_bytes
from fico_export.errors import ConfigError
from fico_export.profile import machine, summary
from fico_export.profile.picture import PROMPT
from fico_export.profile.record import Machine, Measured, Run
from fico_export.profile.subject import Subject
from fico_export.profile.worker import Job
from fico_export.progress import Progress, Silent
from fico_export.runtime.backends import AUTO
from fico_export.runtime.backends.base import Backend, loading_steps
from fico_export.runtime.backends.choice import choose
from fico_export.runtime.inputs.image_sources import ImageSource, label_of, read_source
from fico_export.runtime.inputs.images import load_image

# ONNX Runtime's threads spin on for some 20 ms after a run, and would take the cores from the bundle whose turn is next.
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class ProfileRequest:
    """What to measure by.

    Args:
        picture: any that `load_image` reads; None for one drawn by code.
        prompt: asked about it.
        backend: one that `fico list backends` names, or auto.
        threads: CPU threads within an operator; 0 for one per core.
        iterations: answers of each bundle that count.
        warm_up: answers of each bundle before them.
        new_tokens: of every answer; the end-of-sequence token does not end one.
        in_turn: one bundle after another, where memory does not hold all: the ratios then hold the machine's drift too.

    Raises:
        ConfigError: a number is out of its range.
    """

    picture: ImageSource | None = None
    prompt: str = PROMPT
    backend: str = AUTO
    threads: int = 0
    iterations: int = 20
    warm_up: int = 3
    new_tokens: int = 16
    in_turn: bool = False

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("warm_up", 0), ("new_tokens", 1), ("threads", 0)):
            if getattr(self, name) < least:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{name} is {getattr(self, name)}", fix=f"give {flag} a number from {least}"
                )


def profile(folders: Sequence[str | Path], request: ProfileRequest, progress: Progress | None = None) -> Run:
    """Measure bundles against each other; the same one twice is a control.

    Args:
        folders: of the bundles; ratios are to the first.
        request: what to measure by.
        progress: told of each step.

    Raises:
        ConfigError: the request, a bundle, the image or the prompt cannot be used, or memory is too small.
        EngineError: a graph cannot be loaded or run, or the process that ran it ended.
    """
    progress = progress or Silent()
    if not folders:
        raise ConfigError("no bundle to profile", fix="give the folder of at least one bundle")
    manifests = [Manifest.load(Path(folder)) for folder in folders]
    if request.picture is not None:
        load_image(request.picture)
    chosen = [
        choose(request.backend, Path(folder), manifest)
        for folder, manifest in zip(folders, manifests, strict=True)
    ]
    _require_memory(manifests, chosen, in_turn=request.in_turn)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    places = range(len(folders))
    groups = [[i] for i in places] if request.in_turn else [[*places]]
    found: list[Measured] = []
    seen: Machine | None = None
    with tempfile.TemporaryDirectory(prefix="fico-profile-") as scratch:
        picture = _picture_file(request.picture, Path(scratch))
        for group in groups:
            jobs = [_job(folders[i], request, picture, scratch) for i in group]
            seen, replies = _measure(jobs, request, progress, seen)
            found += [
                summary.measured(str(folders[i]), manifests[i], *reply)
                for i, reply in zip(group, replies, strict=True)
            ]
    assert seen is not None
    for bundle in found:
        if abs(1 - bundle.coverage) > summary.AGREEMENT:
            progress.warn(
                f"the stages of {bundle.bundle} sum to {bundle.coverage:.0%} of its end-to-end time: something else "
                "took the rest, such as other work on this machine"
            )
    found = summary.with_reducer_ms(found, manifests)
    return Run(
        created=created,
        machine=seen,
        iterations=request.iterations,
        warm_up=request.warm_up,
        in_turn=request.in_turn,
        picture=label_of(request.picture) if request.picture is not None else None,
        prompt=request.prompt,
        bundles=found,
        ratios=summary.ratios(found),
    )


def _measure(
    jobs: Sequence[Job], request: ProfileRequest, progress: Progress, seen: Machine | None
) -> tuple[Machine, list[tuple[list[dict[str, Any]], dict[str, Any]]]]:
    """The machine from when the first answer of all counted to now; the counted answers and the last reply of each job."""
    answers: list[list[dict[str, Any]]] = [[] for _ in jobs]
    with ExitStack() as stack:
        subjects = []
        for job in jobs:
            progress.stage(f"load {Path(job.bundle).name}")
            subjects.append(stack.enter_context(Subject(job)))
        rounds = request.warm_up + request.iterations
        progress.stage("measure", parts=rounds * len(jobs))
        for i in range(rounds):
            if i == request.warm_up:
                seen = seen or machine.describe()
            for subject, kept in zip(subjects, answers, strict=True):
                time.sleep(PAUSE_SECONDS)
                answer = subject.answer(request.new_tokens)
                _require_whole(answer, request)
                progress.advance(1)
                if i >= request.warm_up:
                    kept.append(answer)
        assert seen is not None
        seen = machine.ended(seen)
        progress.stage("attribute")
        return seen, [(kept, subject.finish()) for subject, kept in zip(subjects, answers, strict=True)]


def _picture_file(picture: ImageSource | None, scratch: Path) -> str | None:
    """A file that the measured processes read: of the very bytes that were given, so that decoding them counts."""
    if picture is None:
        return None
    _, content = read_source(picture)
    file = scratch / "picture"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        load_image(content).save(file, format="PNG")
    return str(file)


def _job(folder: str | Path, request: ProfileRequest, picture: str | None, scratch: str) -> Job:
    return Job(
        bundle=str(Path(folder).resolve()),
        picture=picture,
        prompt=request.prompt,
        backend=request.backend,
        threads=request.threads,
        scratch=scratch,
    )


def _require_whole(answer: dict[str, Any], request: ProfileRequest) -> None:
    if answer["new_tokens"] < request.new_tokens:
        raise ConfigError(
            f"the model's context is full after {answer['new_tokens']} of {request.new_tokens} new tokens",
            fix=f"give --new-tokens {answer['new_tokens']} or fewer, or a shorter prompt",
        )


def _require_memory(manifests: Sequence[Manifest], chosen: Sequence[Backend], *, in_turn: bool) -> None:
    """Refuse to load bundles together that do not fit together; on a GPU, the driver says what fits."""
    available = available_bytes()
    if available is None:
        return
    needed = [
        backend.host_bytes(m, [graph for step in loading_steps(m) for graph in step])
        for m, backend in zip(manifests, chosen, strict=True)
    ]
    together = max(needed) if in_turn else sum(needed)
    if together > available:
        helps = "give --in-turn to load one bundle at a time, " if max(needed) <= available else ""
        raise ConfigError(
            f"the bundles need {together / 1e9:.1f} GB of memory on ort-cpu, {available / 1e9:.1f} GB are free",
            fix=f"free memory, {helps}or profile on a machine with more memory",
        )
