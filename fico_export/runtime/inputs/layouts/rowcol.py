"""SmolVLM's and Idefics3's rule: a grid of tiles of the enlarged image, then all of it as one more tile, with text tokens between them.

The image is resized so that its longer side has a fixed length, then to whole tiles, which changes its shape a little. Before each tile a text
says its row and column, and a line break ends each row of tiles. An image of one tile has the text of a whole image alone.

Numbers: `longest`, the longer side after the first step, in pixels.
Texts: `tile` before each tile, `row_R_col_C` after it, `line` after each row, `blank` after the last, `global` before the whole
image, and `end` after it.

Source: transformers' Idefics3ImageProcessor and Idefics3Processor, with which those of SmolVLM agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fico_export.bundle.profiles import MAX_SIDE, LayoutRecord, Profile
from fico_export.runtime.inputs.layouts.base import Block, Rule, Size, cut_up
from fico_export.runtime.inputs.layouts.tiles import not_a_grid, tiles

_SINGLE = {"tile", "global", "end"}
_SPLIT = {*_SINGLE, "line", "blank"}


def problem(profile: Profile, record: LayoutRecord) -> str:
    """Tiles that are no grid with one for the whole image, or numbers and texts of another rule."""
    if found := not_a_grid(profile):
        return found
    if record.numbers.keys() != {"longest"} or not 1 <= record.numbers["longest"] <= MAX_SIDE:
        return f"its numbers are not longest alone, of 1 … {MAX_SIDE}"
    rows, columns = profile.tile_grid
    places = {place(row, column) for row in range(rows) for column in range(columns)}
    wanted = _SPLIT | places if profile.tiles > 1 else _SINGLE
    return f"there is no text {min(missing)}" if (missing := wanted - record.texts.keys()) else ""


def place(row: int, column: int) -> str:
    """Name of the text that says where a tile is, counted from 0."""
    return f"row_{row + 1}_col_{column + 1}"


def choose(profiles: Sequence[Profile], size: Size, record: LayoutRecord) -> Profile:
    """The model's own grid for the image, or of others the one of the nearest shape; one tile where there is no grid."""
    grids = [profile for profile in profiles if profile.tiles > 1]
    by_grid = {profile.tile_grid: profile for profile in profiles}
    own = _grid(_enlarged(size, record), profiles[0].size[0])
    if own in by_grid or not grids:
        return by_grid.get(own, profiles[0])

    def distance(profile: Profile) -> float:
        rows, columns = profile.tile_grid
        return round(abs(math.log(size[0] / size[1]) - math.log(columns / rows)), 9)

    return min(grids, key=distance)


def cut(
    image: Image.Image, profile: Profile, record: LayoutRecord, resample: Image.Resampling
) -> list[Image.Image]:
    """The grid's tiles, row by row, then all of them as one; each step resizes what the step before left."""
    (rows, columns), (height, width) = profile.tile_grid, profile.size
    enlarged = image.resize(_enlarged(image.size, record), resample=resample)
    whole = enlarged.resize((columns * width, rows * height), resample=resample)
    found = cut_up(whole, profile)
    return found if len(found) == 1 else [*found, whole.resize((width, height), resample=resample)]


def block(profile: Profile, size: Size, record: LayoutRecord) -> Block:
    """Tile by tile, each after its texts."""
    (rows, columns), texts, axes = profile.tile_grid, record.texts, record.axes
    tokens = profile.visual_tokens // profile.tiles
    counted = np.arange(tokens)

    def shown(tile: int, where: str, after: Sequence[int]) -> list[Block]:
        cells = Block.of_cells(tile * tokens + counted, np.tile(counted, (axes, 1)), tokens)
        return [Block.of_text([*texts["tile"], *texts[where]], axes), cells, Block.of_text(after, axes)]

    found: list[Block] = []
    for tile in range(profile.tiles - 1):
        row, column = divmod(tile, columns)
        # The last row's line break and the one before the whole image are one text.
        ends = texts["line" if row + 1 < rows else "blank"] if column + 1 == columns else ()
        found += shown(tile, place(row, column), ends)
    return Block.joined([*found, *shown(profile.tiles - 1, "global", texts["end"])])


def _enlarged(size: Size, record: LayoutRecord) -> Size:
    """Width and height once the longer side is `longest`; the other is even."""
    (width, height), longest = size, record.numbers["longest"]
    shape = width / height
    if width >= height:
        across, down = longest, int(longest / shape)
        down += down % 2
    else:
        across, down = int(longest * shape), longest
        across += across % 2
    return max(across, 1), max(down, 1)


def _grid(size: Size, side: int) -> tuple[int, int]:
    """Rows and columns of whole tiles that hold an enlarged image."""
    (width, height), shape = size, size[0] / size[1]
    if width >= height:
        across = math.ceil(width / side) * side
        down = math.ceil(int(across / shape) / side) * side
    else:
        down = math.ceil(height / side) * side
        across = math.ceil(int(down * shape) / side) * side
    return max(down // side, 1), max(across // side, 1)


RULE = Rule(problem=problem, choose=choose, cut=cut, tiles=tiles, block=block)
