"""`fico-export` and `fico export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fico_export.cli.console import StageProgress, human_bytes, print_json, say
from fico_export.cli.options import (
    BlockOption,
    DebugOption,
    DevicesOption,
    JsonOption,
    KeepOption,
    MethodOption,
    PrecisionOption,
    QuantizeHeadOption,
    QuantizeVisionOption,
    RevisionOption,
    SettingOption,
    as_settings,
    whole_number,
)
from fico_export.errors import unknown_name

_POSITIONS = ("compact", "original")
_PRECISIONS = ("fp32", "fp16", "int4")


def command(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model to export: an alias (llava-1.5-7b), a hub id, a checkpoint folder, or demo. Default: demo.",
        ),
    ] = None,
    keep: KeepOption = None,
    method: MethodOption = None,
    setting: SettingOption = None,
    precision: PrecisionOption = None,
    block: BlockOption = None,
    quantize_head: QuantizeHeadOption = None,
    quantize_vision: QuantizeVisionOption = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="FILE.jsonl",
            help='Calibration data for AWQ, with int4: lines of {"image": …, "prompt": …}. Default: none, rounding to nearest.',
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Runtime and version that the graphs are for; `fico list targets`. Default: the device's, or portable.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="GPU or Jetson that the bundle is for; `fico list devices`."),
    ] = None,
    devices: DevicesOption = None,
    max_context: Annotated[
        int | None,
        typer.Option(
            "--max-context",
            metavar="M",
            help="Tokens that the KV cache has room for, with trt-* and rtx. Default: 1024, or the model's context.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="FILE.toml", help="File of export options; flags given beside it win."
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions",
            metavar="compact|original",
            help="Position ids of kept tokens. Default: the method's.",
        ),
    ] = None,
    clip_text: Annotated[
        str | None,
        typer.Option(
            "--clip-text",
            metavar="MODEL",
            help="CLIP model that the vision tower comes from, for a method that compares the prompt with the image.",
        ),
    ] = None,
    revision: RevisionOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder of the bundle. Default: engines/<model>-<method>-k<K>-<precision>."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    copy_weights: Annotated[
        bool,
        typer.Option(
            "--copy-weights",
            help="Write all weights into the bundle, instead of linking the checkpoint's files that fit.",
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Compare every graph with torch before the bundle gets its name."
        ),
    ] = True,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Export a LLaVA checkpoint to ONNX graphs with its visual tokens reduced to K."""
    options: dict[str, Any] = {
        "model": model,
        "keep": whole_number(keep),
        "method": method,
        "settings": as_settings(setting or []),
        "precision": precision,
        "block": block,
        "quantize_head": quantize_head,
        "quantize_vision": quantize_vision,
        "target": target,
        "device": device,
        "max_context": max_context,
        "positions": positions,
        "clip_text": clip_text,
        "revision": revision,
    }
    if recipe is not None:
        from fico_export.bundle.recipe import Recipe

        options = Recipe.load(recipe).with_flags(options)
    for name, kind, known in (
        ("precision", "precision", _PRECISIONS),
        ("positions", "positions policy", _POSITIONS),
    ):
        if options[name] is not None and options[name] not in known:
            raise unknown_name(kind, options[name], known)
    model = options.pop("model")

    from fico_export.api import export
    from fico_export.bundle.manifest import Manifest

    began = time.perf_counter()
    with StageProgress() as progress:
        folder = export(
            "demo" if model is None else model,
            options.pop("keep"),
            **options,
            calibrate=calibrate,
            devices=devices,
            out=out,
            overwrite=overwrite,
            copy_weights=copy_weights,
            verify=verify,
            progress=progress,
        )
    seconds = time.perf_counter() - began
    manifest = Manifest.load(folder)
    size, reduction = sum(f.size for f in manifest.files.values()), manifest.reduction
    linked = sum(f.size for f in manifest.files.values() if f.mtime_ns is not None)
    if as_json:
        print_json(
            {
                "bundle": str(folder),
                "method": reduction.method,
                "visual_tokens": reduction.visual_tokens,
                "keep": reduction.keep,
                "precision": manifest.precision,
                "target": manifest.target,
                "device": manifest.device,
                "size_bytes": size,
                "linked_bytes": linked,
                "seconds": round(seconds, 3),
            }
        )
        return
    kept = f"{human_bytes(size)}, of which {human_bytes(linked)} linked" if linked else human_bytes(size)
    say(f"{folder}: {reduction.visual_tokens} → {reduction.keep} visual tokens, {kept}, {seconds:.1f} s")
    say(f'next: fico run {folder} --image PICTURE --prompt "What is in the picture?"')
