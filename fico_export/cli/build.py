"""`fico build`: a bundle's graphs in, TensorRT engines out."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fico_export.cli.console import StageProgress, human_bytes, print_json, say
from fico_export.cli.options import BundleArgument, DebugOption, DevicesOption, JsonOption
from fico_export.devices.nvidia import RTX, TENSORRT
from fico_export.errors import ConfigError

if TYPE_CHECKING:
    from fico_export.build.engines import Row
    from fico_export.build.jobs import Job
    from fico_export.build.library import Builder
    from fico_export.bundle.engines import Options
    from fico_export.bundle.manifest import Manifest
    from fico_export.devices.catalog import Device
    from fico_export.devices.targets import Target

_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_LOW_WORKSPACE = 512 * 2**20


def command(
    bundle: BundleArgument,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="TensorRT version to build for; `fico list targets`. Default: the bundle's own, or for a portable bundle the device's.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Device that runs the engines; `fico list devices`.")
    ] = None,
    devices: DevicesOption = None,
    graph: Annotated[
        list[str] | None,
        typer.Option("--graph", metavar="NAME", help="Graph to build; repeatable. Default: all that run."),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            metavar="8.6",
            help="GPU generation to build for, with target rtx; repeatable. Default: the device's, this GPU's, or 8.6, 8.9 and 12.0.",
        ),
    ] = None,
    profiles: Annotated[
        int,
        typer.Option(
            "--profiles",
            metavar="1|2",
            help="Optimisation profiles. 2: one for a token, one for a prompt; the weights may then be stored twice.",
        ),
    ] = 1,
    opt_level: Annotated[
        int, typer.Option("--opt-level", metavar="0-5", help="Effort of the builder; 5 builds longest.")
    ] = 3,
    workspace: Annotated[
        str | None,
        typer.Option(
            "--workspace",
            metavar="2GB",
            help="Scratch memory that an engine may use. Default: all of the device's.",
        ),
    ] = None,
    aux_streams: Annotated[
        int | None,
        typer.Option(
            "--aux-streams", help="Maximum number of auxiliary CUDA streams. Default: TensorRT's choice."
        ),
    ] = None,
    hardware_compatibility: Annotated[
        str,
        typer.Option(
            "--hardware-compatibility",
            metavar="none|ampere_plus|same_compute_capability",
            help="Let other GPUs run the engine too, at some cost of speed.",
        ),
    ] = "none",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Let later versions of TensorRT run the engine too.")
    ] = False,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Build with a workspace of 512 MiB and no auxiliary streams.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Build again what could be reused, and drop engines built with other options."
        ),
    ] = False,
    emit_trtexec: Annotated[
        bool,
        typer.Option(
            "--emit-trtexec",
            help="Build nothing; write build.sh and profile.sh for the target's trtexec. Needs no TensorRT.",
        ),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Build a bundle's engines, each in a process of its own; what did not change is reused."""
    if profiles not in (1, 2):
        raise ConfigError(f"--profiles {profiles}", fix="--profiles 1, or 2")
    from fico_export.build import engines, jobs, library, preflight, trtexec
    from fico_export.bundle import files
    from fico_export.bundle.manifest import Manifest
    from fico_export.devices import catalog

    manifest = Manifest.load(bundle)
    given = catalog.get(device, devices) if device else None
    wanted = library.choose_target(target, manifest.target, given)
    plan = jobs.plan(bundle, manifest, graph or [], profiles=profiles)
    options = _options(
        wanted, opt_level, workspace, aux_streams, hardware_compatibility, version_compatible, low_memory
    )
    files.check(bundle, manifest, full=False)
    _lint(bundle, manifest, plan, wanted)
    if emit_trtexec:
        _emitted(trtexec.write(bundle, wanted, plan, options), bundle, as_json)
        return
    implied = given or _of_bundle(manifest, wanted, catalog.load(devices))
    builder = library.find(wanted, implied, compute_capability or [])
    memory, disk = preflight.memory_bytes(plan, builder.runtime), preflight.disk_bytes(plan)
    say(f"{wanted.name}: {', '.join(job.name for job in plan)} for compute capability {', '.join(builder.compute_capabilities)}, by "
        f"{builder.runtime} {builder.version}; at most about {human_bytes(memory)} of memory and {human_bytes(disk)} of disk")  # fmt: skip
    began = time.perf_counter()
    with StageProgress() as progress:
        rows = engines.build(bundle, wanted.name, plan, builder, options, force=force, progress=progress)
    seconds = time.perf_counter() - began
    if as_json:
        print_json(_described(bundle, wanted, builder, rows, seconds))
        return
    for row in rows:
        say(_line(row))
    if wanted.compute_capabilities and not all(row.reused for row in rows):  # TensorRT-RTX
        say("no timing cache: TensorRT-RTX times nothing when it builds")
    rest = [name for name in jobs.wanted(manifest) if name not in engines.built(bundle, wanted.name)]
    say(_next(bundle, wanted, rest))


def _options(
    target: Target,
    level: int,
    workspace: str | None,
    streams: int | None,
    hardware: str,
    version_compatible: bool,
    low_memory: bool,
) -> Options:
    from pydantic import ValidationError

    from fico_export.bundle.engines import Options

    rtx = target.parser is not None and target.parser.runtime == RTX.parser
    if rtx and (hardware != "none" or version_compatible):
        flag = "--version-compatible" if version_compatible else "--hardware-compatibility"
        raise ConfigError(
            f"{RTX.name} has no {flag}",
            fix="drop it: --compute-capability, given again and again, says which GPUs run the engine",
        )
    if not 0 <= level <= 5:
        raise ConfigError(f"--opt-level {level}", fix="--opt-level 0 to 5")
    if streams is not None and streams < 0:
        raise ConfigError(
            f"--aux-streams {streams}", fix="--aux-streams 0 or more; drop it for TensorRT's choice"
        )
    try:
        return Options(
            optimization_level=level,
            workspace_bytes=_size(workspace) if workspace else _LOW_WORKSPACE if low_memory else None,
            auxiliary_streams=0 if streams is None and low_memory else streams,
            hardware_compatibility=hardware,
            version_compatible=version_compatible,
            low_memory=low_memory,
        )
    except ValidationError as error:
        raise ConfigError(
            f"unknown hardware compatibility {hardware!r}",
            fix="known: none, ampere_plus, same_compute_capability",
        ) from error


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)", text)
    units = {unit.lower(): count for unit, count in _UNITS.items()}
    if match is None or match[2].lower() not in units or float(match[1]) == 0:
        raise ConfigError(f"--workspace {text!r} is no size", fix="--workspace 2GB, or 512MiB")
    return int(float(match[1]) * units[match[2].lower()])


def _of_bundle(manifest: Manifest, target: Target, known: dict[str, Device]) -> Device | None:
    """The device that a bundle was exported for, where TensorRT-RTX builds for it."""
    found = known.get(manifest.device or "")
    return found if found and found.compute_capability in target.compute_capabilities else None


def _lint(bundle: Path, manifest: Manifest, plan: Sequence[Job], target: Target) -> None:
    """Refuse graphs that the target's parser would refuse, where onnx is there to read them: a Jetson goes without."""
    try:
        from fico_export.exporter import lint
    except ModuleNotFoundError:
        say("not linted, for onnx is not installed: the parser says what it refuses")
        return
    taken = target.beside(quantized=True)
    for job in plan:
        if found := lint.lint(lint.read(bundle / job.graph.file), target, also=taken):
            more = f"; {len(found) - 1} more" if len(found) > 1 else ""
            fix = found[0].fix
            if manifest.target != target.name:
                fix = f"export again with --target {target.name}, or build for another target"
            raise ConfigError(
                f"{target.name} refuses {job.name}: {found[0]}{more}",
                fix=f"{fix}; `fico lint {bundle} --target {target.name}` names all",
            )


def _described(
    bundle: Path, target: Target, builder: Builder, rows: Sequence[Row], seconds: float
) -> dict[str, Any]:
    return {
        "bundle": str(bundle),
        "target": target.name,
        "runtime": builder.runtime,
        "version": builder.version,
        "compute_capabilities": builder.compute_capabilities,
        "engines": [
            {
                "graph": row.name,
                "file": str(row.file),
                "size_bytes": row.size,
                "reused": row.reused,
                "parse_seconds": _rounded(row.parse_seconds),
                "build_seconds": _rounded(row.build_seconds),
                "peak_bytes": row.peak_bytes,
            }
            for row in rows
        ],
        "seconds": round(seconds, 3),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _line(row: Row) -> str:
    what = f"{row.name:<24}{human_bytes(row.size):>10}"
    if row.reused:
        return f"{what}  reused: nothing that it is made of has changed (--force builds it again)"
    return (
        f"{what}  parse {row.parse_seconds:.1f} s, build {row.build_seconds:.1f} s, "
        f"{human_bytes(row.peak_bytes or 0)} of memory at most"
    )


def _next(bundle: Path, target: Target, rest: Sequence[str]) -> str:
    if rest:
        return f"next: fico build {bundle} --target {target.name}, for {', '.join(rest)}"
    backend = (RTX if target.compute_capabilities else TENSORRT).backend
    return f'next: fico run {bundle} --backend {backend} --image PICTURE --prompt "What is in the picture?"'


def _emitted(paths: Sequence[Path], bundle: Path, as_json: bool) -> None:
    if as_json:
        print_json({"bundle": str(bundle), "scripts": [str(path) for path in paths]})
        return
    for path in paths:
        say(str(path))
    say(f"next: on the target's machine, sh {paths[0]}")
