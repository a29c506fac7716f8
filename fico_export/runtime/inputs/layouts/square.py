"""LLaVA-1.5's rule: one square, whose visual tokens stand in one run, row by row."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fico_export.bundle.profiles import LayoutRecord, Profile
from fico_export.runtime.inputs.layouts.base import Block, Rule, Size, Tile, first, unknown


def problem(profile: Profile, record: LayoutRecord) -> str:
    """More than one tile, or any number or text."""
    if profile.tiles != 1:
        return f"it has {profile.tiles} tiles, not one"
    return unknown(record)


def cut(
    image: Image.Image, profile: Profile, record: LayoutRecord, resample: Image.Resampling
) -> list[Image.Image]:
    """The image itself: its processor makes the square."""
    return [image]


def tiles(size: Size, profile: Profile) -> list[Tile]:
    """All of it."""
    return [Tile((0, 0, *size), size)]


def block(profile: Profile, size: Size, record: LayoutRecord) -> Block:
    """Counted through, whatever stands beside the patches too; equal on every axis."""
    counted = np.arange(profile.visual_tokens)
    return Block.of_cells(counted, np.tile(counted, (record.axes, 1)), profile.visual_tokens)


RULE = Rule(problem=problem, choose=first, cut=cut, tiles=tiles, block=block)
