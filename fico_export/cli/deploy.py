"""`fico deploy`: a bundle to another machine, built and asked there, with the results back."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fico_export.cli.console import StageProgress, human_bytes, print_json, put, say
from fico_export.cli.options import BundleArgument, DebugOption, JsonOption
from fico_export.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from fico_export.deploy.deploy import Summary


def command(
    bundle: BundleArgument,
    host: Annotated[
        str, typer.Option("--host", metavar="USER@HOST", help="As ssh takes it.", show_default=False)
    ],
    port: Annotated[
        int | None, typer.Option("--port", "-p", min=1, max=65535, help="Port of sshd. Default: ssh's own.")
    ] = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", "-i", metavar="FILE", help="Private key. Default: ssh's own.")
    ] = None,
    ssh_config: Annotated[
        Path | None, typer.Option("--ssh-config", metavar="FILE", help="Instead of ~/.ssh/config.")
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--dir", metavar="DIR", help="Of the bundle there. Default: ~/fico/<name>.")
    ] = None,
    fico: Annotated[
        str | None,
        typer.Option(
            "--fico", metavar="PATH", help="The command there. Default: on PATH, ~/fico/venv or ~/.local."
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="PATH", help="Or the interpreter there that has fico_export."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Of the engines. Default: the device's, or the bundle's."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="What it is; `fico list devices`.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="DIR", help="Where the checkpoint is there, to verify with."),
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="To answer on. Default: fico run's.")
    ] = None,
    low_memory: Annotated[bool, typer.Option("--low-memory", help="For the steps that know it.")] = False,
    extra: Annotated[
        list[str] | None,
        typer.Option("--also", metavar='STEP="WORDS"', help="More words for a step's command; repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip", metavar="STEP", help="doctor, inspect, build, verify, answer or profile; repeatable."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="KB/S", min=1, help="Rate to send at. Default: all there is."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Repeat what was done, and compare the files there by content.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Send a bundle by rsync over ssh; there doctor, inspect, build, verify, run and profile; results into BUNDLE/deploy."""
    from fico_export.bundle import files
    from fico_export.bundle.manifest import Manifest
    from fico_export.deploy import deploy as work
    from fico_export.deploy import remote, steps, transfer
    from fico_export.devices import catalog, targets

    # What is wrong with the request comes first: it stays wrong when this machine has got what it lacks.
    if fico and python:
        raise ConfigError("--fico and --python", fix="give one of them")
    for name in skip or ():
        _require_step(name)
    if target is not None:
        targets.get(target)
    if device is not None:
        catalog.get(device)
    wishes = steps.Wishes(
        target, device, checkpoint, backend, low_memory, dict(map(_extra, extra or ())), frozenset(skip or ())
    )
    there = remote.Host(host, port, identity, ssh_config)
    files.check(bundle, Manifest.load(bundle), full=False)
    remote.require("ssh")
    transfer.require_rsync()
    try:
        with (
            remote.connected(there, interactive=sys.stdin.isatty() and sys.stderr.isatty()) as connection,
            StageProgress() as progress,
        ):
            summary = work.deploy(
                connection, bundle, wishes, folder=folder, fico=fico, python=python, force=force,
                kilobytes_per_second=limit, progress=progress, log=say,
            )  # fmt: skip
            results = work.results_folder(bundle, connection)
    except KeyboardInterrupt:
        say("the same command goes on where this one was stopped")
        raise
    if as_json:
        print_json({**summary.model_dump(mode="json"), "results": str(results)})
    else:
        _show(summary, results)
    if not summary.passed:
        raise typer.Exit(1)


def _require_step(name: str) -> None:
    from fico_export.deploy.steps import NAMES

    if name not in NAMES:
        raise unknown_name("step", name, NAMES)


def _extra(text: str) -> tuple[str, tuple[str, ...]]:
    step, equals, words = text.partition("=")
    if not equals:
        raise ConfigError(f"--also {text!r} names no step", fix='such as --also "answer=--threads 4"')
    _require_step(step)
    try:
        return step, tuple(shlex.split(words))
    except ValueError as error:
        raise ConfigError(
            f"--also {text!r} has a quote without its pair", fix='such as --also "answer=--threads 4"'
        ) from error


def _show(summary: Summary, results: Path) -> None:
    put(
        f"{summary.bundle} → {summary.host}:{summary.folder}  ({summary.machine}, fico {summary.fico_version})"
    )
    put(f"sent       {summary.sent_files} files, {human_bytes(summary.sent_bytes)} of them were not there")
    for outcome in summary.outcomes:
        took = f"{outcome.seconds:.1f} s" if outcome.seconds and outcome.status != "kept" else ""
        put(f"{outcome.step:<10} {outcome.status:<12}{took:>8}  {outcome.line}")
        if outcome.fix:
            put(f"{'':<10} {'':<12}{'':>8}  hint: {outcome.fix}")
    put(f"results    {results}")
