"""An image through its vision graph: all tiles at once, or tile by tile where the graph takes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fico_export.bundle.profiles import Profile

Array = npt.NDArray[Any]
Run = Callable[[dict[str, Array]], list[Array]]
"""Inputs by name → image_features [1, k, D], keep_index [1, k], and planes [1, L, k, D] where the model has such."""


def run_tiles(run: Run, profile: Profile, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs for an image: features [K, D], keep_index [K] numbered through all tiles, planes [L, K, D].

    Args:
        run: of the graph.
        profile: of the image.
        feeds: what the graph takes, `pixel_values` [T·F, 3, H, W] with all tiles of the image, or frames of the video.
    """
    if profile.runs == 1:
        return [output[0] for output in run(dict(feeds))]
    tokens = profile.visual_tokens // profile.tiles
    found: list[list[Array]] = []
    for tile, pixels in enumerate(np.split(feeds["pixel_values"], profile.runs)):
        features, index, *planes = run({**feeds, "pixel_values": pixels})
        found.append([features[0], index[0] + tile * tokens, *(part[0] for part in planes)])
    features_of, index_of, *planes_of = zip(*found, strict=True)
    return [
        np.concatenate(features_of),
        np.concatenate(index_of),
        *(np.concatenate(p, axis=1) for p in planes_of),
    ]
