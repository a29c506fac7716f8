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
        str,
        typer.Option(
            "--host",
            metavar="USER@HOST",
            help="Address of the other machine, as ssh takes it.",
            show_default=False,
        ),
    ],
    port: Annotated[
        int | None,
        typer.Option("--port", "-p", min=1, max=65535, help="Port of its ssh server. Default: ssh's own."),
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            "--identity", "-i", metavar="FILE", help="Private key to log in with. Default: ssh's own."
        ),
    ] = None,
    ssh_config: Annotated[
        Path | None,
        typer.Option(
            "--ssh-config", metavar="FILE", help="Configuration file of ssh. Default: ~/.ssh/config."
        ),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            "--dir", metavar="DIR", help="Folder of the bundle on that machine. Default: ~/fico/<name>."
        ),
    ] = None,
    fico: Annotated[
        str | None,
        typer.Option(
            "--fico",
            metavar="PATH",
            help="Path of the fico command on that machine. Default: on PATH, ~/fico/venv or ~/.local.",
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            "--python",
            metavar="PATH",
            help="Path of a Python on that machine that has fico_export; in place of --fico.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", help="TensorRT version to build for. Default: the device's, or the bundle's."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Kind of machine; `fico list devices`.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", metavar="DIR", help="Folder of the checkpoint on that machine, to verify with."
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Backend that answers. Default: as `fico run` chooses.")
    ] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Pass --low-memory to the steps that have it.")
    ] = False,
    extra: Annotated[
        list[str] | None,
        typer.Option(
            "--also", metavar='STEP="WORDS"', help="Extra arguments for the command of a step; repeatable."
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="STEP",
            help="Step to leave out: doctor, inspect, build, verify, answer or profile; repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="KB/S", min=1, help="Maximum rate of sending. Default: no limit."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Repeat the steps that are done, and compare the files there by content."
        ),
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
