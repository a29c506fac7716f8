"""One grid of equal tiles, to which the image is resized; its visual tokens stand in one run, row by row of the whole grid.

With one axis of position ids, cells are counted through. With more, the last two are a cell's row and column. The
axes before them keep the position at which the image begins, and the text goes on after the longer side.

A video's tiles are its frames, or as many as a patch spans. Each is shown as an image of its own is, between text tokens and after
the text that says when it was.

Numbers: `newline`, the id of a text token after each row of cells; none by default. `start` and `end`, of those around a video's tile.

Source for videos: Qwen3VLProcessor, Qwen3VLVideoProcessor and Qwen3VLModel.get_rope_index of transformers 5, which leave the tokens
around the video that a chat template has. Before that, 4.57 put the tiles in their place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from fico_export.bundle.profiles import VIDEO, LayoutRecord, Profile
from fico_export.runtime.inputs.layouts.base import (
    NONE,
    Block,
    Clip,
    Kind,
    Rule,
    Size,
    Tile,
    cut_up,
    equal_parts,
    unknown,
)


def problem(profile: Profile, record: LayoutRecord) -> str:
    """Tiles or visual tokens beside the grid, or numbers of another rule."""
    rows, columns = profile.tile_grid
    if profile.tiles != rows * columns or profile.aside:
        return "it has tiles or visual tokens that are no part of its grid"
    if found := unknown(record, {"newline", "start", "end"}):
        return found
    if profile.name == VIDEO and (rows > 1 or not record.numbers.keys() >= {"start", "end"}):
        return "a video has one row of tiles, between two tokens"
    return ""


def among(profiles: Sequence[Profile], record: LayoutRecord, kind: Kind) -> Sequence[Profile]:
    """That of videos, or the others."""
    return [profile for profile in profiles if (profile.name == VIDEO) == (kind == "video")]


def choose(profiles: Sequence[Profile], size: Size, record: LayoutRecord) -> Profile:
    """The profile whose whole grid has the shape nearest to the image's; of equal shapes the one nearest in size, then the first."""

    def distance(profile: Profile) -> tuple[float, float]:
        (rows, columns), (height, width) = profile.tile_grid, profile.size
        across, down = math.log(columns * width / size[0]), math.log(rows * height / size[1])
        return round(abs(across - down), 9), abs(across + down)

    return min(profiles, key=distance)


def cut(
    image: Image.Image, profile: Profile, record: LayoutRecord, resample: Image.Resampling
) -> list[Image.Image]:
    """T tiles of the resized image, row by row."""
    (rows, columns), (height, width) = profile.tile_grid, profile.size
    resized = image.resize((columns * width, rows * height), resample=resample)
    return cut_up(resized, profile)


def tiles(size: Size, profile: Profile) -> list[Tile]:
    """Equal parts of the image, row by row; of a video all of it each time."""
    if profile.name == VIDEO:
        return [Tile((0, 0, *size), profile.size[::-1])] * profile.tiles
    return equal_parts(size, profile)


def block(profile: Profile, size: Size, record: LayoutRecord) -> Block:
    """All cells of the grid, row by row, each with its position ids; of a video tile by tile."""
    if profile.name == VIDEO:
        return _of_video(profile, size, record)
    axes = record.axes
    (tile_rows, tile_columns), (rows, columns) = profile.tile_grid, profile.token_grid
    height, width = tile_rows * rows, tile_columns * columns
    row, column = np.divmod(np.arange(height * width), width)
    tile = row // rows * tile_columns + column // columns
    visual = (tile * rows + row % rows) * columns + column % columns
    ids = np.full((height, width), NONE)
    rows_of, columns_of, visual_of = (x.reshape(height, width) for x in (row, column, visual))
    if (newline := record.numbers.get("newline")) is not None:
        ids, visual_of = (_with_column(x, fill) for x, fill in ((ids, newline), (visual_of, NONE)))
        rows_of, columns_of = _with_column(rows_of, rows_of[:, :1]), _with_column(columns_of, width)
    length = ids.shape[1]
    if axes == 1:
        offsets, span = np.arange(ids.size)[None], ids.size
    else:
        start = np.zeros((axes - 2, ids.size), np.int64)
        offsets, span = np.concatenate([start, [rows_of.ravel()], [columns_of.ravel()]]), max(height, length)
    return Block(ids.ravel(), visual_of.ravel(), offsets, span)


def _of_video(profile: Profile, size: Size, record: LayoutRecord) -> Block:
    """Each tile as an image alone, after its time, which is known of a `Clip`."""
    whole = profile.visual_tokens // profile.tiles
    still = profile.model_copy(update={"name": "", "tile_grid": (1, 1), "tiles": 1})
    one, axes, numbers = block(still, size, record), record.axes, record.numbers
    parts: list[Block] = []
    for tile, text in enumerate(size.texts if isinstance(size, Clip) else [()] * profile.tiles):
        visual = np.where(one.visual == NONE, NONE, one.visual + tile * whole)
        before = Block.of_text([*text, numbers["start"]], axes)
        parts += [before, replace(one, visual=visual), Block.of_text([numbers["end"]], axes)]
    return Block.joined(parts)


def sample(total: int, count: int) -> list[int]:
    """From the first frame to the last."""
    found: list[int] = np.linspace(0, total - 1, count).round().astype(int).tolist()
    return found


def time(seconds: Sequence[float]) -> str:
    """Halfway between the first frame of a tile and its last. What stands before and after it is no text, so that it is encoded alone."""
    return f"<{(seconds[0] + seconds[-1]) / 2:.1f} seconds>"


def _with_column(x: Any, fill: Any) -> Any:
    """[H, W] → [H, W + 1]."""
    return np.concatenate([x, np.broadcast_to(fill, (len(x), 1))], axis=1)


RULE = Rule(
    problem=problem,
    choose=choose,
    cut=cut,
    tiles=tiles,
    block=block,
    among=among,
    sample=sample,
    time=time,
)
