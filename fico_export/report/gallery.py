"""The images of a report: kept tokens lit, where dropped ones went, and each step of a method that has several."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from PIL import Image

from fico_export.bundle.profiles import Profile
from fico_export.report.geometry import patches_of
from fico_export.report.kept import Kept, kept
from fico_export.report.overlay import fitted, flows, lit, merged_into
from fico_export.runtime.inputs.image_sources import ImageSource, label_of, path_of
from fico_export.runtime.vlm import Vlm

if TYPE_CHECKING:
    from fico_export.report.merges import Trace

_LONGEST_PX, _STEP_PX = 640, 240
_QUALITY = 88

Tracer = Callable[[Profile, Mapping[str, npt.NDArray[Any]]], "Trace"]
"""The profile of an image and what the vision graph takes of it, by input → what became of its tokens."""


@dataclass(frozen=True)
class Shown:
    """A drawing within the page.

    Attributes:
        source: a data address.
        width, height: in pixels.
        says: what it shows, for who cannot see it.
        caption: below it.
    """

    source: str
    width: int
    height: int
    says: str
    caption: str


@dataclass(frozen=True)
class Item:
    """One image in one bundle; `notes` says what is missing, and why."""

    bundle: str
    image: str
    facts: str
    lit: Shown
    flows: Shown | None = None
    steps: list[Shown] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def item(vlm: Vlm, image: ImageSource, prompt: str | None, tracer: Tracer | None) -> Item:
    """One image in one bundle.

    Args:
        vlm: the bundle.
        image: an image, as `load_image` takes it.
        prompt: for a method that reads it.
        tracer: follows the tokens of an image in torch; None where the checkpoint is not there.

    Raises:
        InputError: not an image, or no prompt where one is needed.
    """
    path = path_of(image)
    name = path.name if path is not None else label_of(image)
    found = kept(vlm, image, prompt)
    reduction = vlm.manifest.reduction
    patches = found.view.cells
    facts = f"{len(found.patches)} of {patches} patches kept"
    facts += f", {found.outside} of them in padding" if found.outside else ""
    facts += ", and the CLS token" if found.cls else ""
    scale = fitted(found.picture.size, _LONGEST_PX)
    drawn = lit(found.picture, found.view, found.patches, None, scale)
    says = f"{name} with {len(found.patches)} of {patches} patches lit, the others darkened"
    whole = _shown(drawn, says, "Kept patches are lit.")
    if tracer is None or not reduction.steps:
        return Item(vlm.manifest.name, name, facts, whole)
    pixels = vlm.preprocess(found.picture)
    profile = vlm.layout.profile(pixels.size)
    trace = tracer(profile, vlm.feeds(pixels, vlm.read_prompt(prompt)))
    merged, notes = _merged(found, trace, profile, scale)
    if reduction.in_decoder:
        notes.append(
            "What the layers of the decoder drop or merge is only in the image of what is kept: it is not followed step by step."
        )
    return Item(vlm.manifest.name, name, facts, whole, merged, _steps(found, trace), notes)


def _merged(found: Kept, trace: Trace, profile: Profile, scale: float) -> tuple[Shown | None, list[str]]:
    """The map of where each dropped patch went, and what is to be said of it."""
    notes: list[str] = []
    total = found.view.cells
    if not trace.steps:
        return None, notes
    share = trace.shares(total)
    if share is None:
        bad = next(step for step in trace.steps if step.weights is None)
        return None, [
            f"No map of merges: {bad.method} at {bad.name} is not linear in the tokens (off by {bad.error:.1e})."
        ]
    live = trace.steps[-1].live
    moved = int((share.sum(0) > 0).sum()) - len(live)
    if not moved:
        notes.append(
            "No map of merges: what this method drops before the decoder is gone, nothing is merged."
        )
        return None, notes
    error, gone = max(step.error for step in trace.steps), total - len(live) - moved
    caption = (
        f"{moved} dropped patches went into {len(merged_into(live, share))} of {len(live)}, which have a frame; the fullest holds "
        f"{share.sum(1).max():.3g} patches' worth. A line leads to where most of a patch went"
        f"{f'; the other {gone} are gone' if gone else ''}. Weights reproduce the merged tokens within {error:.0e}."
    )
    mine = set(patches_of(trace.keep_index, profile).tolist())
    if mine != (theirs := set(found.patches.tolist())) and len(mine) == len(theirs):
        notes.append(
            f"The map is of torch in FP32, which keeps {len(mine & theirs)} of the bundle's {len(theirs)} patches."
        )
    drawn = flows(found.picture, found.view, live, share, scale)
    return _shown(drawn, f"Where the dropped patches of the image went: {caption}", caption), notes


def _steps(found: Kept, trace: Trace) -> list[Shown]:
    """What is live after each application, where there are several."""
    if len(trace.steps) < 2:
        return []
    scale = fitted(found.picture.size, _STEP_PX)
    shown = []
    for step in trace.steps:
        caption = f"{step.method}, {step.name.replace('_', ' ')}: {len(step.live)} left"
        drawn = lit(found.picture, found.view, step.live, None, scale)
        shown.append(_shown(drawn, f"Patches left after {caption}", caption))
    return shown


def _shown(drawn: Image.Image, says: str, caption: str) -> Shown:
    content = io.BytesIO()
    drawn.save(content, format="JPEG", quality=_QUALITY, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
    return Shown(source, *drawn.size, says, caption)
