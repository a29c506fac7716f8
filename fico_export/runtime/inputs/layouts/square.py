"""LLaVA-1.5's rule: one square, whose visual tokens stand in one run, row by row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from fico_export.bundle.profiles import Profile
from fico_export.runtime.inputs.layouts.base import Block, Rule, Size, Tile, first


def problem(profile: Profile, numbers: Mapping[str, int]) -> str:
    """More than one tile, or any number."""
    if profile.tiles != 1:
        return f"it has {profile.tiles} tiles, not one"
    return f"there is no number {min(numbers)}" if numbers else ""


def cut(image: Image.Image, profile: Profile, resample: Image.Resampling) -> list[Image.Image]:
    """The image itself: its processor makes the square."""
    return [image]


def tiles(size: Size, profile: Profile) -> list[Tile]:
    """All of it."""
    return [Tile((0, 0, *size), size)]


def block(profile: Profile, size: Size, axes: int, numbers: Mapping[str, int]) -> Block:
    """Counted through, whatever stands beside the patches too; equal on every axis."""
    counted = np.arange(profile.visual_tokens)
    return Block.of_cells(counted, np.tile(counted, (axes, 1)), profile.visual_tokens)


RULE = Rule(problem=problem, choose=first, cut=cut, tiles=tiles, block=block)
