"""A bundle to another machine: sent, then taken through the steps there; results come back, and what is done stays done."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from fico_export import documents
from fico_export.bundle import files
from fico_export.bundle.manifest import FILE_NAME, Manifest
from fico_export.bundle.output import anything, written_file
from fico_export.deploy import probe, transfer
from fico_export.deploy.probe import Place
from fico_export.deploy.remote import Done, Remote
from fico_export.deploy.steps import PICTURE, STEPS, Context, Step, Wishes
from fico_export.errors import ConfigError
from fico_export.progress import Progress, Silent
from fico_export.tables import Record

RESULTS = "deploy"  # in the bundle: results by host
SUMMARY = "summary.json"
_KILLED = 137  # 128 + SIGKILL: what Linux does to a process when memory runs out
# What doctor finds, on which the result of a step depends; the rest of it changes from minute to minute.
_VERSIONS = {"Python", "ONNX Runtime", "driver", "CUDA", "TensorRT", "TensorRT-RTX", "JetPack", "device"}


class Outcome(Record):
    """What became of a step.

    Attributes:
        step: its name.
        status: `kept` from an earlier deployment of the same bundle to the same software.
        line: the result, or the reason, in a line.
        fix: what to do about a step that failed.
        seconds: that it took.
        command: on the other machine.
        basis: what the result depends on.
        finished: time.
        result: the JSON object of the command.
    """

    step: str
    status: Literal["done", "kept", "skipped", "failed", "not reached"]
    line: str
    fix: str = ""
    seconds: float = 0.0
    command: list[str] = Field(default_factory=list)
    basis: dict[str, str] = Field(default_factory=dict)
    finished: str = ""
    result: dict[str, Any] = Field(default_factory=dict)


class Summary(Record):
    """A deployment.

    Attributes:
        bundle: its name.
        manifest_sha256: of its manifest, which has those of all files.
        host: where to.
        machine: operating system and processor there.
        folder: there.
        fico_version: there.
        sent_files: that had to be sent.
        sent_bytes: of their content, without what was there already.
        outcomes: of the steps, in order, without the commands' results.
        passed: whether no step failed.
    """

    bundle: str
    manifest_sha256: str
    host: str
    machine: str
    folder: str
    fico_version: str
    sent_files: int
    sent_bytes: int
    outcomes: list[Outcome]
    passed: bool


def deploy(
    remote: Remote,
    bundle: Path,
    wishes: Wishes,
    *,
    folder: str | None = None,
    fico: str | None = None,
    python: str | None = None,
    force: bool = False,
    kilobytes_per_second: int | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
) -> Summary:
    """Send a bundle and take it through the steps.

    Args:
        remote: a machine that is connected.
        bundle: its folder, here.
        wishes: what to do there.
        folder: the bundle's there; fico/<name> in the home folder by default.
        fico: the command there; looked for by default.
        python: or the interpreter there that has fico_export.
        force: repeat what was done, and compare files by content.
        kilobytes_per_second: to send at most.
        progress: told of each step.
        log: told each line that a command there says on stderr.

    Returns:
        What became of it; each step's is also in a file of `results_folder`.

    Raises:
        BundleError: the bundle is damaged here.
        ConfigError: the results cannot be written.
        DeployError: the other machine cannot be used.
        DiskError: the other machine's disk is full.
    """
    progress = progress or Silent()
    manifest = Manifest.load(bundle)
    files.check(bundle, manifest, full=False)
    results = _results(bundle, remote)
    name = bundle.resolve().name
    progress.stage("look there")
    place = probe.look(remote, probe.in_home(folder or f"fico/{name}"), fico=fico, python=python)
    sent = _send(remote, bundle, manifest, place, force, kilobytes_per_second, progress)
    basis = {"manifest": files.sha256(bundle / FILE_NAME), "fico": place.version}
    outcomes: list[Outcome] = []
    doctor: dict[str, Any] = {}
    for step in STEPS:
        if any(o.status == "failed" and _step(o.step).decides for o in outcomes):
            outcomes.append(Outcome(step=step.name, status="not reached", line="a step before it failed"))
            continue
        context = Context(place.folder, manifest, wishes, doctor)
        words = _words(step, context, place)
        if isinstance(words, str):
            outcomes.append(Outcome(step=step.name, status="skipped", line=words))
            continue
        kept = None if force or sent.literal or step.every_time else _kept(results, step, words, basis)
        if kept is None:
            progress.stage(f"{step.name} there")
            outcome = _run(remote, step, words, basis, results, log)
            _write(results / f"{step.name}.json", _json(outcome))
        else:
            outcome = kept.model_copy(update={"status": "kept"})
        if step.name == "doctor":
            doctor = outcome.result
            versions = {f["what"]: f["found"] for f in doctor.get("findings", []) if f["what"] in _VERSIONS}
            basis = basis | versions
        outcomes.append(outcome)
    summary = Summary(
        bundle=name,
        manifest_sha256=basis["manifest"],
        host=_host(remote),
        machine=place.machine,
        folder=place.folder,
        fico_version=place.version,
        sent_files=sent.files,
        sent_bytes=sent.literal,
        outcomes=[o.model_copy(update={"result": {}}) for o in outcomes],
        passed=all(o.status != "failed" for o in outcomes),
    )
    _write(results / SUMMARY, _json(summary))
    return summary


def results_folder(bundle: Path, remote: Remote) -> Path:
    """Where the results of a machine are kept: deploy/<host> in the bundle."""
    return bundle / RESULTS / re.sub(r"[^\w.@-]", "_", _host(remote))


def _host(remote: Remote) -> str:
    port = remote.host.port
    return f"{remote.host.name}{f':{port}' if port is not None else ''}"


def _results(bundle: Path, remote: Remote) -> Path:
    folder = results_folder(bundle, remote)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write results to {folder}: {error.strerror}",
            fix="deploy from a bundle that you may write to",
        ) from error
    return folder


def _send(
    remote: Remote,
    bundle: Path,
    manifest: Manifest,
    place: Place,
    force: bool,
    limit: int | None,
    progress: Progress,
) -> transfer.Sent:
    names = list(manifest.files)
    progress.stage("compare files")
    needed = transfer.missing(remote, bundle, [*names, FILE_NAME], place.folder, thorough=force)
    probe.require_room(remote, place, needed.size)
    sent = transfer.Sent(0, 0, 0)

    def send(folder: Path, files: Sequence[str]) -> transfer.Sent:
        return transfer.send(
            remote, folder, files, place.folder, progress, thorough=force, kilobytes_per_second=limit
        )

    if needed.files:
        progress.stage("send", needed.size)
        sent = send(bundle, names)
        # Last: until then, what is there is no bundle, or the one before.
        head = send(bundle, [FILE_NAME])
        sent = transfer.Sent(sent.files + head.files, sent.size + head.size, sent.literal + head.literal)
    with tempfile.TemporaryDirectory(prefix="fico-") as drawn:
        _draw(Path(drawn) / PICTURE)
        send(Path(drawn), [PICTURE])
    return sent


def _draw(path: Path) -> None:
    from fico_export.demo import scenes

    path.parent.mkdir()
    scenes.render(scenes.scene(10, "held-out")).save(path)


def _step(name: str) -> Step:
    return next(step for step in STEPS if step.name == name)


def _words(step: Step, context: Context, place: Place) -> list[str] | str:
    """The command of a step, or why it is not done."""
    if step.name in context.wishes.skip:
        return "as asked for"
    if step.verb not in place.verbs:
        return f"the fico there ({place.version}) has no `fico {step.verb}`"
    words = step.words(context)
    if isinstance(words, str):
        return words
    return [*place.fico, step.verb, *words, *context.wishes.extra.get(step.name, ()), "--json"]


def _kept(results: Path, step: Step, words: list[str], basis: dict[str, str]) -> Outcome | None:
    with suppress(OSError, ValueError, ValidationError):
        old = Outcome.model_validate_json((results / f"{step.name}.json").read_text(encoding="utf-8"))
        if (old.status, old.command, old.basis) == ("done", words, basis):
            return old
    return None


def _run(
    remote: Remote, step: Step, words: list[str], basis: dict[str, str], results: Path,
    log: Callable[[str], None] | None,
) -> Outcome:  # fmt: skip
    began = time.perf_counter()
    done = remote.run(words, log)
    _write(results / f"{step.name}.log", done.err)
    result = _result(done.out)
    outcome = Outcome(
        step=step.name,
        status="failed" if done.code else "done",
        line="",
        seconds=round(time.perf_counter() - began, 2),
        command=words,
        basis=basis,
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        result=result,
    )
    if done.code == 0:
        return outcome.model_copy(update={"line": step.line(result)})
    what, fix = _why(step, done, result)
    return outcome.model_copy(update={"line": what, "fix": fix})


def _why(step: Step, done: Done, result: dict[str, Any]) -> tuple[str, str]:
    """What a step that failed says, and its fix."""
    if "error" in result:
        return str(result["error"]), str(result.get("hint", ""))
    if done.code == _KILLED:
        return (
            "the system killed it, most likely because memory ran out",
            "give --low-memory, and the board swap: docs/jetson.md, Memory",
        )
    if result:  # doctor's problems, verify's checks
        return step.line(result), f"see {step.name}.json"
    said = " / ".join(done.err.strip().splitlines()[-3:]) or f"exit code {done.code}"
    return said, f"see {step.name}.log"


def _result(out: str) -> dict[str, Any]:
    """The JSON object on stdout; a shell's greeting before it is passed over."""
    for line in reversed(out.splitlines()):
        with suppress(ConfigError):
            return documents.parse_object(line, "the other machine's answer", fix="")
    return {}


def _write(path: Path, text: str) -> None:
    """Replace an earlier result of the same name."""
    with written_file(path, ours=anything) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


def _json(record: Record) -> str:
    return json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
