"""`fico show`: what a bundle keeps of an image, drawn over it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fico_export.cli.console import print_json, put, say
from fico_export.cli.images import ImageRangeOption, image_range, opened, paths_of
from fico_export.cli.options import (
    BackendOption,
    BundleArgument,
    CheckpointNowOption,
    ClipNowOption,
    DebugOption,
    JsonOption,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from fico_export.report.kept import Kept
    from fico_export.runtime.vlm import Vlm

_UNFOLLOWED = "decoder layer"  # the site whose merges --merges cannot draw
_LONGEST_PX = 640  # smaller images are drawn larger, so that a patch can be seen


def command(
    bundle: BundleArgument,
    image: Annotated[
        str,
        typer.Option(
            "--image",
            "-i",
            metavar="FILE|-",
            help="Image file, `-` for standard input, or a data URL.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.png", help="PNG file to write.", show_default=False)
    ],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Question to ask, for a method that reads it.")
    ] = None,
    image_values: ImageRangeOption = None,
    backend: BackendOption = "auto",
    merges: Annotated[
        bool,
        typer.Option(
            "--merges",
            help="Draw where dropped tokens were merged into; needs torch and the checkpoint.",
        ),
    ] = False,
    model: CheckpointNowOption = None,
    clip_text: ClipNowOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw an image with the tokens that are kept of it lit, and the others darkened; what the tower does not see is hatched.

    With --merges, a line leads from each dropped token to the one that holds most of it, and those that hold others have a frame.
    """
    from fico_export import reducers
    from fico_export.bundle.output import require_writable, written_file
    from fico_export.report.kept import kept
    from fico_export.report.overlay import fitted, lit, marked
    from fico_export.runtime.inputs.images import load_image
    from fico_export.runtime.vlm import Vlm

    source = opened([image])[0]
    require_writable(out, ".png", paths_of([source]))
    picture = load_image(source, image_range=image_range(image_values))
    vlm = Vlm(bundle, backend=backend, lazy=True)
    found = kept(vlm, picture, prompt)
    scale = max(1.0, fitted(found.picture.size, _LONGEST_PX))
    if merges:
        drawn = _with_merges(vlm, found, prompt, scale, model, clip_text)
    else:
        drawn = lit(found.picture, found.view, found.patches, None, scale)
    with written_file(out) as partial:
        drawn.save(partial, format="PNG", pnginfo=marked())
    merging = [step for step in vlm.manifest.reduction.steps if reducers.merges(step.method)]
    if as_json:
        print_json(
            {
                "out": str(out),
                "picture": found.picture.size,
                "scale": scale,
                "grid": found.view.grid,
                "seen": found.view.box,
                "patches": found.patches.tolist(),
                "outside": found.outside,
                "cls": found.cls,
                "merges": bool(merging),
            }
        )
        return
    besides = f", {found.outside} of them in padding" if found.outside else ""
    besides += ", and the CLS token" if found.cls else ""
    put(f"{out}: {len(found.patches)} of {found.view.cells} patches kept{besides}")
    if any(step.site != _UNFOLLOWED for step in merging) and not merges:
        say(f"{vlm.manifest.reduction.method} merges tokens into some of these: --merges draws which")


def _with_merges(
    vlm: Vlm, found: Kept, prompt: str | None, scale: float, model: str | None, clip_text: str | None
) -> Image:
    from fico_export.api import checkpoint_of
    from fico_export.errors import ConfigError
    from fico_export.report.merges import encoder, trace
    from fico_export.report.overlay import flows

    reduction = vlm.manifest.reduction
    checkpoint = checkpoint_of(vlm.folder, vlm.manifest, model, clip_text)
    pixels = vlm.preprocess(found.picture)
    module = encoder(checkpoint, reduction.method, reduction.keep, reduction.options)(
        vlm.layout.profile(pixels.size).name
    )
    followed = trace(module, vlm.feeds(pixels, vlm.read_prompt(prompt)))
    shares = followed.shares(found.view.cells) if followed.steps else None
    if shares is None:
        raise ConfigError(
            f"{reduction.method} merges nothing before the decoder that can be followed", fix="drop --merges"
        )
    return flows(found.picture, found.view, followed.steps[-1].live, shares, scale)
