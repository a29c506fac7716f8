"""An image in torch as the model has it without a reduction: all of its visual tokens, where a prompt shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fico_export.bundle.profiles import VIDEO, Profile
from fico_export.models.source import SourceModel
from fico_export.models.vision import VisionEncoder
from fico_export.options import ExportOptions
from fico_export.runtime.inputs.images import ImageFeatures, Pixels
from fico_export.runtime.inputs.layout import Layout
from fico_export.runtime.inputs.layouts.base import NEWLINE, NONE
from fico_export.runtime.inputs.tile_runs import run_tiles


def in_full(checkpoint: SourceModel) -> tuple[Layout, Callable[[Pixels], ImageFeatures]]:
    """The layout of a checkpoint as it was trained, and what makes of an image's pixels its features in FP32.

    Of a model that sees images of any size or in any tiles, those are the ones that the checkpoint was shaped for; but a model that
    leaves padding out takes the grid that it was trained on for each image, as transformers computes what padding is from it.
    """
    names = tuple(profile.name for profile in checkpoint.profiles if profile.name != VIDEO)
    choices = set(checkpoint.choices)
    shaped = names if "unpad" not in choices else None
    whole = checkpoint.shaped(
        ExportOptions(
            method="none",
            resolution=shaped if "resolution" in choices else None,
            profile=shaped if "profile" in choices else None,
        )
    )
    layout = Layout(whole.layout, whole.profiles, "original", whole.tokens.image_id)
    newline = whole.checkpoint.load(whole.newline).to(torch.float32).numpy() if whole.newline else None
    module_of = _Modules(whole)

    def features_of(pixels: Pixels) -> ImageFeatures:
        profile = layout.profile(pixels.size)
        module = module_of(profile)

        def run(feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
            with torch.inference_mode():
                return [np.asarray(output) for output in module(torch.from_numpy(feeds["pixel_values"]))]

        features, index, *planes = run_tiles(run, profile, {"pixel_values": pixels.values})
        features, index = layout.shown(pixels.size, features, index)
        block, added = layout.place(pixels.size, index), planes[0] if planes else None
        return ImageFeatures(features, index, "", pixels.size, block, added, newline)

    return layout, features_of


class _Modules:
    """The vision graph's module of each profile, on one set of weights."""

    def __init__(self, checkpoint: SourceModel) -> None:
        self._checkpoint = checkpoint
        self._made: dict[str, VisionEncoder] = {}

    def __call__(self, profile: Profile) -> VisionEncoder:
        if profile.graph in self._made:
            return self._made[profile.graph]
        plan = self._checkpoint.plan("none", None, {})
        with torch.device("meta"):
            plan = self._checkpoint.plan_for(plan, profile)
            module = self._checkpoint.vision(plan, torch.float32, profile=profile)
        if self._made:
            (first, *_) = self._made.values()
            module.load_state_dict(first.state_dict(), assign=True)
            self._made[profile.graph] = module.eval()
        else:
            self._made[profile.graph] = self._checkpoint.with_weights(module)
        return self._made[profile.graph]


def rows_of(image: ImageFeatures) -> npt.NDArray[np.float32]:
    """[n, D] the visual tokens and newline vectors that stand for an image in a prompt, without the text between them."""
    visual = image.block.visual[image.block.visual != NONE]
    rows: npt.NDArray[np.float32] = image.features[visual]
    if image.newline is not None:
        rows[visual == NEWLINE] = image.newline
    return rows
