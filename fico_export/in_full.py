"""An image in torch as the model has it without a reduction: all of its visual tokens, where a prompt shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fico_export.models.source import SourceModel
from fico_export.options import ExportOptions
from fico_export.runtime.inputs.images import ImageFeatures, Pixels
from fico_export.runtime.inputs.layout import Layout
from fico_export.runtime.inputs.layouts.base import NEWLINE
from fico_export.runtime.inputs.tile_runs import run_tiles


def in_full(checkpoint: SourceModel) -> tuple[Layout, Callable[[Pixels], ImageFeatures]]:
    """The layout of a checkpoint as it was trained, and what makes of an image's pixels its features in FP32."""
    whole = checkpoint.shaped(ExportOptions(method="none"))
    with torch.device("meta"):
        module = whole.vision(whole.plan("none", None, {}), torch.float32)
    module = whole.with_weights(module)
    layout = Layout(whole.layout, whole.profiles, "original", whole.tokens.image_id)
    newline = whole.checkpoint.load(whole.newline).to(torch.float32).numpy() if whole.newline else None

    def run(feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            return [np.asarray(output) for output in module(torch.from_numpy(feeds["pixel_values"]))]

    def features_of(pixels: Pixels) -> ImageFeatures:
        features, index = run_tiles(run, layout.profile(pixels.size), {"pixel_values": pixels.values})
        features, index = layout.shown(pixels.size, features, index)
        block = layout.place(pixels.size, index)
        return ImageFeatures(features, index, "", pixels.size, block, newline=newline)

    return layout, features_of


def rows_of(image: ImageFeatures) -> npt.NDArray[np.float32]:
    """[R, D] what stands for an image in a prompt of visual tokens and newline vectors alone."""
    rows: npt.NDArray[np.float32] = image.features[image.block.visual]
    if image.newline is not None:
        rows[image.block.visual == NEWLINE] = image.newline
    return rows
