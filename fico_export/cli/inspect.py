"""`fico inspect`: what is in a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fico_export.cli.console import human_bytes, print_json, put
from fico_export.cli.options import BundleArgument, DebugOption, JsonOption

if TYPE_CHECKING:
    from fico_export.bundle.engines import Build
    from fico_export.bundle.manifest import Graph, Manifest
    from fico_export.bundle.profiles import Profile


def command(
    bundle: BundleArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Hash every file and compare; name files that are not listed.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the manifest: model, method, budget, graphs and their tensors, files; and the engines."""
    from fico_export.bundle import files
    from fico_export.bundle.engine_check import built_targets, check_engines
    from fico_export.bundle.engines import Build
    from fico_export.bundle.manifest import Manifest

    manifest = Manifest.load(bundle)
    targets = built_targets(bundle)
    if check:
        files.check(bundle, manifest, full=True)
        for target in targets:
            check_engines(bundle, manifest, target, full=True)
    builds = [Build.load(bundle, target) for target in targets]
    besides = files.unlisted(bundle, manifest) if check else []
    if as_json:
        engines = {build.target: build.model_dump(mode="json") for build in builds}
        print_json(
            {
                **manifest.model_dump(mode="json"),
                "engines": engines,
                "hashes_checked": check,
                "unlisted": besides,
            }
        )
        return
    _put_made(manifest)
    for name, graph in manifest.graphs.items():
        _put_graph(name, graph)
    for build in builds:
        _put_engines(build)
    total = sum(f.size for f in manifest.files.values())
    put(f"files      {len(manifest.files)}, {human_bytes(total)}{', hashes match' if check else ''}")
    for name in besides:
        put(f"unlisted   {name!a}: nothing vouches for it, and nothing reads it")


def _grid(profile: Profile) -> str:
    """A profile's grid of visual tokens, and how many tiles have one."""
    tiles = f"{profile.tiles} tiles of " if profile.tiles > 1 else "a "
    return f"{tiles}{profile.token_grid[0]}×{profile.token_grid[1]} grid{'s' if profile.tiles > 1 else ''}"


def _put_made(manifest: Manifest) -> None:
    """What was exported, and how."""
    reduction, decoder = manifest.reduction, manifest.decoder
    options = ", ".join(f"{k}={v}" for k, v in reduction.options.items() if v is not None)
    put(f"{manifest.name}  schema {manifest.schema_version}, made {manifest.created}")
    put(
        f"model      {manifest.model.source} ({manifest.model.model_type}), revision {manifest.model.revision or '–'}"
    )
    if manifest.clip_text is not None:
        put(f"clip text  {manifest.clip_text.source}, revision {manifest.clip_text.revision or '–'}")
    put(f"method     {reduction.method}{'; ' + options if options else ''}")
    if len(manifest.profiles) > 1:
        shapes = ", ".join(f"{profile.name} ({profile.tiles} tiles)" for profile in manifest.profiles)
        put(f"images     {shapes}: by the shape of each")
    put(f"tokens     {reduction.visual_tokens} → {reduction.keep} of {_grid(manifest.profile)}, "
          f"{reduction.positions} positions")  # fmt: skip
    for step in reduction.steps:
        layers = ", ".join(f"layer {layer}: {left}" for layer, left in step.schedule.items())
        put(
            f"step       {step.method} at the {step.site}: {step.before} → {step.keep}{'; ' + layers if layers else ''}"
        )
    if reduction.in_decoder:
        mean = sum(reduction.cached) / len(reduction.cached)
        put(f"cached     {mean:.1f} visual tokens in the mean of the decoder's layers")
    room = f", KV cache of {manifest.cache_rows} rows" if manifest.cache_rows else ""
    room += f", {manifest.max_batch} sequences together" if manifest.max_batch > 1 else ""
    put(
        f"decoder    {decoder.layers} layers, {decoder.kv_heads} kv heads of {decoder.head_dim}, context {decoder.context}{room}"
    )
    put(
        f"graphs     {manifest.precision}, target {manifest.target}{' for ' + manifest.device if manifest.device else ''}, opset {manifest.opset}, IR {manifest.ir_version}"
    )
    if record := manifest.quantization:
        put(
            f"weights    INT{record.bits} in blocks of {record.block} by {record.form}, {record.scheme}; "
            f"lm_head {_bits(record.head_bits)}, vision tower {_bits(record.vision_bits)}"
        )


def _put_graph(name: str, graph: Graph) -> None:
    """A graph's file, and the first of its inputs and outputs."""
    put(f"  {name}: {graph.file}")
    for direction, specs in (("in ", graph.inputs), ("out", graph.outputs)):
        for spec in specs[:4]:
            put(f"    {direction} {spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]")
        if len(specs) > 4:
            put(f"    {direction} … {len(specs) - 4} more")


def _put_engines(build: Build) -> None:
    """What the engines were made with, and the sizes that each takes."""
    put(f"engines    {_made(build)}")
    for name, engine in build.engines.items():
        profiles = " | ".join(
            ", ".join(f"{axis} {least}…{most}" for axis, (least, _, most) in profile.items())
            for profile in engine.profiles
        )
        put(f"  {name}: {human_bytes(engine.size)}{', ' + profiles if profiles else ''}")


def _made(build: Build) -> str:
    """What engines were made with, and for which machines."""
    from fico_export.devices.nvidia import of_runtime

    return (
        f"{build.target}: {of_runtime(build.runtime).name} {build.version}, {build.platform}, "
        f"compute capability {', '.join(build.compute_capabilities)}{', ' + build.gpu if build.gpu else ''}, made {build.created}"
    )


def _bits(bits: int | None) -> str:
    return f"INT{bits}" if bits else "left alone"
