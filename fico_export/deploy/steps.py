"""What is done on the other machine, in order: each step is a verb of the fico there, with --json."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fico_export.bundle.manifest import Manifest
from fico_export.devices import catalog, targets

PICTURE = "deploy/picture.png"  # in the bundle's folder there
_QUESTION = "What is in the picture?"
Result = dict[str, Any]


@dataclass(frozen=True)
class Wishes:
    """What the user asked for.

    Attributes:
        target: of the engines; None for what the device or the bundle implies.
        device: a name of the catalogue.
        checkpoint: the one that the bundle came from, where it is on the other machine.
        backend: to answer on.
        low_memory: for boards whose memory is short.
        extra: more words for the command of a step.
        skip: steps to leave out.
    """

    target: str | None = None
    device: str | None = None
    checkpoint: str | None = None
    backend: str | None = None
    low_memory: bool = False
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skip: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Context:
    """What a step's words depend on; `doctor` is what the other machine's said, empty where it was not asked."""

    folder: str
    manifest: Manifest
    wishes: Wishes
    doctor: Result


@dataclass(frozen=True)
class Step:
    """One of the steps.

    Attributes:
        name: of the step, and of its results.
        verb: of fico.
        says: what it shows.
        words: that follow the verb, or a line that says why the step is not done.
        line: its result in a line.
        every_time: whether what it looks at changes without us.
        decides: whether the steps after it are of no use if it fails.
    """

    name: str
    verb: str
    says: str
    words: Callable[[Context], list[str] | str]
    line: Callable[[Result], str]
    every_time: bool = False
    decides: bool = True


def _build(context: Context) -> list[str] | str:
    """For what was asked, else for the device, else for what the bundle was exported for."""
    wishes, own = context.wishes, targets.get(context.manifest.target)
    target = wishes.target or (catalog.get(wishes.device).target if wishes.device else None)
    if target is None and own.parser is None:
        return f"the bundle is for {own.name}, which has no engines: export it with --target {_offered(context.doctor)}"
    device = ["--device", wishes.device] if wishes.device else []
    return [context.folder, "--target", target or own.name, *device, *_spared(context)]


def _offered(doctor: Result) -> str:
    """The target of the JetPack there, as `fico doctor` names it."""
    findings = {f.get("what"): f.get("found", "") for f in doctor.get("findings", [])}
    found = re.search(r"--target (\S+)", findings.get("JetPack", ""))
    return found[1] if found else "of `fico list targets`"


def _verify(context: Context) -> list[str] | str:
    if context.wishes.checkpoint is None:
        return "needs the checkpoint and torch there: give --checkpoint with its folder; `answer` only asks the bundle"
    return [context.folder, "--model", context.wishes.checkpoint]


def _answer(context: Context) -> list[str] | str:
    backend = context.wishes.backend
    picture = f"{context.folder}/{PICTURE}"
    question = ["--image", picture, "--prompt", _QUESTION, "--max-new-tokens", "32"]
    return [context.folder, *question, *(["--backend", backend] if backend else []), *_spared(context)]


def _spared(context: Context) -> list[str]:
    return ["--low-memory"] if context.wishes.low_memory else []


def _doctor_line(result: Result) -> str:
    found = result.get("findings", [])
    named = {s: [f["what"] for f in found if f["status"] == s] for s in ("problem", "note")}
    return "; ".join(f"{s}: {', '.join(names)}" for s, names in named.items() if names) or "nothing is wrong"


def _answer_line(result: Result) -> str:
    text = " ".join(str(result.get("text", "")).split())
    first = result.get("ttft_ms")
    timing = f", first token {first:.0f} ms" if isinstance(first, (int, float)) else ""
    return f"“{text[:40]}{'…' if len(text) > 40 else ''}” on {result.get('backend', '?')}{timing}"


STEPS = (
    Step(
        "doctor", "doctor", "what the machine can do", lambda c: [], _doctor_line, every_time=True, decides=False
    ),
    Step(
        "inspect", "inspect", "that every file there has its SHA-256", lambda c: [c.folder, "--check"],
        lambda r: f"{len(r.get('files', []))} files, hashes match",
    ),
    Step("build", "build", "engines", _build, lambda r: f"engines for {r.get('target', '?')}"),
    Step(
        "verify", "verify", "parity with the checkpoint", _verify,
        lambda r: f"{len(r.get('checks', []))} checks passed",
    ),
    Step("answer", "run", "an answer about a drawn image, whatever it is", _answer, _answer_line),
    Step("profile", "profile", "latencies", lambda c: [c.folder], lambda r: "see its JSON"),
)  # fmt: skip
NAMES = tuple(step.name for step in STEPS)
