"""InternVL's rule: a grid of tiles of the stretched image, then all of it as one more tile, in one run of visual tokens.

The grid is the one whose shape is nearest to the image's. The image is resized to it without keeping its own shape; the thumbnail after the
tiles is resized from the image itself. An image of one tile has no thumbnail. Text tokens stand before the first visual token and
after the last.

Texts: `start` and `end`, around the run.

Source: transformers' GotOcr2ImageProcessor with `crop_to_patches`, and InternVLProcessor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from fico_export.bundle.profiles import LayoutRecord, Profile
from fico_export.runtime.inputs.layouts.base import Block, Rule, Size, Tile, cut_up, equal_parts, unknown


def problem(profile: Profile, record: LayoutRecord) -> str:
    """Tiles that are no grid with a thumbnail, or numbers and texts of another rule."""
    if found := not_a_grid(profile) or unknown(record, texts=True):
        return found
    return "" if record.texts.keys() == {"start", "end"} else "its texts are not start and end"


def not_a_grid(profile: Profile) -> str:
    """What is wrong with the tiles of a profile: they are a grid and one more for the whole image, or one alone."""
    rows, columns = profile.tile_grid
    if profile.tiles != rows * columns + (rows * columns > 1):
        return "its tiles are not one, nor a grid and a thumbnail"
    return "it has visual tokens that are no part of a grid" if profile.aside else ""


def choose(profiles: Sequence[Profile], size: Size, record: LayoutRecord) -> Profile:
    """The grid of the shape nearest to the image's; of equal ones, the larger that has at most twice as many pixels as the image."""
    (width, height), best, found = size, float("inf"), profiles[0]
    for profile in profiles:
        (rows, columns), (down, across) = profile.tile_grid, profile.size
        difference = abs(width / height - columns / rows)
        fits = width * height > 0.5 * down * across * columns * rows
        if difference < best or (difference == best and fits):
            best, found = difference, profile
    return found


def cut(
    image: Image.Image, profile: Profile, record: LayoutRecord, resample: Image.Resampling
) -> list[Image.Image]:
    """The grid's tiles, row by row, then the thumbnail."""
    (rows, columns), (height, width) = profile.tile_grid, profile.size
    found = cut_up(image.resize((columns * width, rows * height), resample=resample), profile)
    return found if len(found) == 1 else [*found, image.resize((width, height), resample=resample)]


def tiles(size: Size, profile: Profile) -> list[Tile]:
    """Equal parts of the image, row by row, then all of it."""
    found = equal_parts(size, profile)
    return found if len(found) == 1 else [*found, Tile((0, 0, *size), profile.size[::-1])]


def block(profile: Profile, size: Size, record: LayoutRecord) -> Block:
    """All visual tokens between the two texts."""
    counted = np.arange(profile.visual_tokens)
    cells = Block.of_cells(counted, np.tile(counted, (record.axes, 1)), len(counted))
    before, after = (Block.of_text(record.texts[name], record.axes) for name in ("start", "end"))
    return Block.joined([before, cells, after])


RULE = Rule(problem=problem, choose=choose, cut=cut, tiles=tiles, block=block)
