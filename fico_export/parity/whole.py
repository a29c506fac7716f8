"""All visual tokens of an image in torch, as the model has them without a reduction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fico_export.models.source import SourceModel
from fico_export.options import ExportOptions
from fico_export.runtime.inputs.images import Pixels
from fico_export.runtime.inputs.layout import Layout
from fico_export.runtime.inputs.layouts.base import NEWLINE
from fico_export.runtime.inputs.tile_runs import run_tiles


def everything_shown(checkpoint: SourceModel) -> Callable[[Pixels], npt.NDArray[np.float32]]:
    """What makes of an image the rows [R, D] that stand for it in a prompt, newline vectors among them."""
    whole = checkpoint.shaped(ExportOptions(method="none"))
    with torch.device("meta"):
        module = whole.vision(whole.plan("none", None, {}), torch.float32)
    module = whole.with_weights(module)
    layout = Layout(whole.layout, whole.profiles, "original", whole.tokens.image_id)
    newline = whole.checkpoint.load(whole.newline).to(torch.float32).numpy() if whole.newline else None

    def run(feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            return [np.asarray(output) for output in module(torch.from_numpy(feeds["pixel_values"]))]

    def shown(pixels: Pixels) -> npt.NDArray[np.float32]:
        features, index = run_tiles(run, layout.profile(pixels.size), {"pixel_values": pixels.values})
        features, index = layout.shown(pixels.size, features, index)
        visual = layout.place(pixels.size, index).visual
        rows: npt.NDArray[np.float32] = features[visual]
        if newline is not None:
            rows[visual == NEWLINE] = newline
        return rows

    return shown
