"""The vision graph of a profile against torch, and torch's tower against transformers', on several images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fico_export.bundle import graph_names
from fico_export.bundle.manifest import Manifest
from fico_export.bundle.profiles import VIDEO, Profile
from fico_export.in_full import in_full, rows_of
from fico_export.models.source import SourceModel
from fico_export.models.vision import VisionEncoder
from fico_export.parity.compare import COSINE, INDEX_AGREEMENT, compare, cosine
from fico_export.parity.prompts import QUESTION, holds, pictures
from fico_export.parity.reference import Reference
from fico_export.parity.report import Check, Report
from fico_export.runtime.inputs.images import Pixels, Video
from fico_export.runtime.inputs.tile_runs import run_tiles
from fico_export.runtime.vlm import Vlm

# A change of the image that moves its features about three times as far as the precision's rounding does (measured).
NUDGE = {"fp32": 3e-6, "fp16": 3e-3, "int4": 3e-3}
NUDGES = 4
NUDGE_SLACK = 0.05  # of the tokens: four nudges do not find the worst outcome

PICTURES = 4

Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32] | None]
"""Features [K, D], kept index [K], and planes [L, K, D] where the model has such."""


def images_of(vlm: Vlm, profile: Profile, only: bool) -> list[Pixels]:
    """Images of a profile: the usual ones, or where there are others, those and one in the profile's own shape."""
    (rows, columns), (height, width) = profile.tile_grid, profile.size
    if profile.name == VIDEO:
        count = profile.tiles * profile.frames
        frames = pictures(PICTURES) * count
        return [vlm.preprocess(Video(frames[first : first + count])) for first in range(PICTURES)]
    images = [image for image in pictures(PICTURES) if holds(vlm, image)]
    if not only or profile.tiles > 1:
        images.append(images[0].resize((columns * width, rows * height)))
    for count in (1, 2):  # a prompt's images: some models show one of several by another profile
        layout = vlm.layout.among(count) if vlm.layout.takes(count) else None
        taken = [image for image in images if layout and layout.profile(image.size).name == profile.name]
        if taken:
            return [vlm.preprocess(image, among=count) for image in taken]
    return []


def check_vision(
    report: Report,
    manifest: Manifest,
    checkpoint: SourceModel,
    vlm: Vlm,
    profile: Profile,
    pixels: list[Pixels],
) -> None:
    """Kept indices and features of a profile's images against the module in torch."""
    reduction = manifest.reduction
    plan = checkpoint.plan(reduction.method, reduction.keep, reduction.options)
    with torch.device("meta"):
        module = checkpoint.vision(checkpoint.plan_for(plan, profile), torch.float32, profile=profile)
    module = checkpoint.with_weights(module)
    text = vlm.read_prompt(QUESTION)
    wide = {
        name: torch.from_numpy(t.astype(np.int64 if t.dtype == np.int64 else np.float32))
        for name, t in text.items()
    }
    given = {name: wide[name] for name in module.extra_inputs if name in wide}
    record = manifest.quantization
    precision = "fp16" if record and not record.vision_bits else manifest.precision
    floor = INDEX_AGREEMENT[precision]
    agreements: list[float] = []
    floors: list[float] = []
    pairs: list[tuple[npt.NDArray[Any], npt.NDArray[np.float32]]] = []
    tied: list[tuple[npt.NDArray[Any], npt.NDArray[np.float32]]] = []
    for picture in pixels:
        with torch.inference_mode():
            expected, expected_index, expected_planes = _through(module, profile, picture, given, vlm)
        got = vlm.encode_pixels(picture, text)
        shared, mine, theirs = np.intersect1d(got.keep_index, expected_index, return_indices=True)
        agreements.append(len(shared) / len(expected_index))
        floors.append(floor)
        if agreements[-1] < floor:
            run = partial(_through, module, profile, given=given, vlm=vlm)
            own = _own_agreement(run, picture, expected_index, NUDGE[precision])
            floors[-1] = min(floor, own - NUDGE_SLACK) if own < 1 else floor
        if shared.size:
            same = floors[-1] == floor
            to = pairs if same else tied
            to.append((got.features[mine], expected[theirs]))
            if expected_planes is not None and got.planes is not None:
                planes = zip(got.planes, expected_planes, strict=True)
                to += [(plane[mine], wanted[theirs]) for plane, wanted in planes]
    worst = min(range(len(pixels)), key=lambda i: agreements[i] - floors[i])
    note = f"scores tie in {len(tied)} of {len(pixels)} images: torch parts with itself there" if tied else ""
    report.checks.append(
        Check(profile.graph, "kept-index agreement", agreements[worst], floors[worst], True, note)
    )
    if pairs or tied:
        compare(report, profile.graph, pairs or tied)


def _through(
    module: VisionEncoder, profile: Profile, picture: Pixels, given: dict[str, torch.Tensor], vlm: Vlm
) -> Outputs:
    """What the vision graph's module makes of an image, as far as the prompt shows it."""
    layout = vlm.layout.of_kind(picture.kind)
    if layout.masked:
        given = {graph_names.VALID: torch.from_numpy(layout.valid(picture.size)), **given}

    def run(feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        pixels = torch.from_numpy(feeds["pixel_values"])
        return [np.asarray(t) for t in module(pixels, *(given[name] for name in module.extra_inputs))]

    features, index, *planes = run_tiles(run, profile, {"pixel_values": picture.values})
    features, index = layout.shown(picture.size, features, index)
    return features, index, planes[0] if planes else None


def _own_agreement(
    run: Callable[[Pixels], Outputs],
    picture: Pixels,
    kept: npt.NDArray[np.int64],
    nudge: float,
) -> float:
    """Share of the tokens kept that torch itself still keeps when the image changes by a nudge; below 1, scores tie."""
    generator = np.random.RandomState(0)
    shares, values = [], picture.values
    for _ in range(NUDGES):
        nudged = values * (1 + nudge * generator.uniform(-1, 1, values.shape)).astype(np.float32)
        with torch.inference_mode():
            index = run(replace(picture, values=nudged))[1]
        shares.append(len(np.intersect1d(index, kept)) / len(kept))
    return min(shares)


def check_tower(report: Report, checkpoint: SourceModel, reference: Reference, pixels: Pixels) -> None:
    """Our torch tower and layout without reduction against transformers': was the checkpoint read as it is meant?"""
    _, features_of = in_full(checkpoint)
    ours, (rows, planes) = features_of(pixels), reference.image_features(pixels)
    pairs = [(rows_of(ours), rows)]
    if planes is not None and ours.planes is not None:
        pairs += zip(ours.planes, planes, strict=True)
    found = min(cosine(got, expected) for got, expected in pairs)
    report.checks.append(Check("tower", "cosine to transformers", found, COSINE["fp32"], True))
