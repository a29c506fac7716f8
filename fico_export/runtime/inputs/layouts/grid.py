"""One grid of equal tiles, to which the image is resized; its visual tokens stand in one run, row by row of the whole grid.

With one axis of position ids, cells are counted through. With more, the last two are a cell's row and column. The
axes before them keep the position at which the image begins, and the text goes on after the longer side.

Numbers: `newline`, the id of a text token after each row of cells; none by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fico_export.bundle.profiles import Profile
from fico_export.runtime.inputs.layouts.base import NONE, Block, Rule, Size, Tile


def problem(profile: Profile, numbers: Mapping[str, int]) -> str:
    """Tiles or visual tokens beside the grid, or numbers of another rule."""
    rows, columns = profile.tile_grid
    if profile.tiles != rows * columns or profile.aside:
        return "it has tiles or visual tokens that are no part of its grid"
    unknown = numbers.keys() - {"newline"}
    return f"there is no number {min(unknown)}" if unknown else ""


def choose(profiles: Sequence[Profile], size: Size) -> Profile:
    """The profile whose whole grid has the shape nearest to the image's; of equal shapes the one nearest in size, then the first."""

    def distance(profile: Profile) -> tuple[float, float]:
        (rows, columns), (height, width) = profile.tile_grid, profile.size
        across, down = math.log(columns * width / size[0]), math.log(rows * height / size[1])
        return round(abs(across - down), 9), abs(across + down)

    return min(profiles, key=distance)


def cut(image: Image.Image, profile: Profile, resample: Image.Resampling) -> list[Image.Image]:
    """T tiles of the resized image, row by row."""
    (rows, columns), (height, width) = profile.tile_grid, profile.size
    resized = image.resize((columns * width, rows * height), resample=resample)
    corners = [(column * width, row * height) for row in range(rows) for column in range(columns)]
    return [resized.crop((left, top, left + width, top + height)) for left, top in corners]


def tiles(size: Size, profile: Profile) -> list[Tile]:
    """Equal parts of the image, row by row."""
    (rows, columns), (height, width) = profile.tile_grid, profile.size
    across, down = size[0] / columns, size[1] / rows
    return [
        Tile((column * across, row * down, (column + 1) * across, (row + 1) * down), (width, height))
        for row in range(rows)
        for column in range(columns)
    ]


def block(profile: Profile, size: Size, axes: int, numbers: Mapping[str, int]) -> Block:
    """All cells of the grid, row by row, each with its position ids."""
    (tile_rows, tile_columns), (rows, columns) = profile.tile_grid, profile.token_grid
    height, width = tile_rows * rows, tile_columns * columns
    row, column = np.divmod(np.arange(height * width), width)
    tile = row // rows * tile_columns + column // columns
    visual = (tile * rows + row % rows) * columns + column % columns
    ids = np.full((height, width), NONE)
    rows_of, columns_of, visual_of = (x.reshape(height, width) for x in (row, column, visual))
    if (newline := numbers.get("newline")) is not None:
        ids, visual_of = (_with_column(x, fill) for x, fill in ((ids, newline), (visual_of, NONE)))
        rows_of, columns_of = _with_column(rows_of, rows_of[:, :1]), _with_column(columns_of, width)
    length = ids.shape[1]
    if axes == 1:
        offsets, span = np.arange(ids.size)[None], ids.size
    else:
        start = np.zeros((axes - 2, ids.size), np.int64)
        offsets, span = np.concatenate([start, [rows_of.ravel()], [columns_of.ravel()]]), max(height, length)
    return Block(ids.ravel(), visual_of.ravel(), offsets, span)


def _with_column(x: Any, fill: Any) -> Any:
    """[H, W] → [H, W + 1]."""
    return np.concatenate([x, np.broadcast_to(fill, (len(x), 1))], axis=1)


RULE = Rule(problem=problem, choose=choose, cut=cut, tiles=tiles, block=block)
