"""LLaVA-NeXT's and LLaVA-OneVision's rule: the whole image as a first tile, then a grid of tiles of the image without distortion.

The grid is the one that wastes least of the image, which is resized to it keeping its shape and padded. In the prompt, the tokens of
the first tile come before those of all others, which are counted row by row of the whole grid; a newline vector follows each row.
What stands for padding is left out as transformers does it, or stays, as most published reducers have it. Where a model shows
several images of a prompt otherwise, each is one tile, padded to a square by the image processor, with one newline after it. The
frames of a video are tiles without one before them, with one newline after the last.

Numbers: `unpad`, whether tokens of padding are left out; `newlines`, which of the newline vectors stand after a reduction; `most`,
so many first tiles as which the grid may have tokens at most, beyond which it is resampled (OneVision's `anyres_max_9`);
`single`, whether several images of a prompt are one tile each.

Source: transformers' LlavaNextImageProcessor and LlavaNextModel.pack_image_features, and those of LLaVA-OneVision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.bundle.profiles import NEWLINES, LayoutRecord, Profile
from fico_export.runtime.inputs.layouts.base import (
    NEWLINE,
    Block,
    Features,
    Index,
    Kind,
    Resampled,
    Rule,
    Size,
    Tile,
    cut_up,
    unknown,
)

_NUMBERS = {"unpad", "newlines", "most", "single"}
_SLACK = 1.1
"""How far over `most` a grid may be before it is resampled, on a side."""

_UNPADDED = LayoutRecord(rule="anyres", numbers={"unpad": 1})


def problem(profile: Profile, record: LayoutRecord) -> str:
    """Tiles that are no grid with one before it, or numbers of another rule."""
    rows, columns = profile.tile_grid
    if profile.tiles - rows * columns not in (0, 1) or profile.aside:
        return "it has tiles beside a grid and one before it"
    if profile.tiles == rows * columns and rows > 1:
        return "it has a grid of tiles without one before it"
    if found := unknown(record, _NUMBERS):
        return found
    return "" if record.numbers.get("newlines", 0) < len(NEWLINES) else "there is no such kind of newlines"


def among(profiles: Sequence[Profile], record: LayoutRecord, kind: Kind) -> Sequence[Profile]:
    """Frames for a video; where the model distinguishes them, one tile for each of several images and a grid for one alone."""
    if kind == "video":
        return [profile for profile in profiles if _in_one_run(profile) and profile.tiles > 1]
    images = [profile for profile in profiles if not _in_one_run(profile) or profile.tiles == 1]
    if not record.numbers.get("single"):
        return images
    found = [profile for profile in images if _in_one_run(profile) == (kind == "several")]
    return found if kind == "several" else found or images  # a bundle of one tile shows every image by it


def choose(profiles: Sequence[Profile], size: Size, record: LayoutRecord) -> Profile:
    """The profile that shows most of the image, and of those the one with least padding; of equals, the first."""
    width, height = size

    def shown(profile: Profile) -> tuple[int, int]:
        (across, down) = _canvas(profile)
        scale = min(across / width, down / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - across * down

    return max(profiles, key=shown)  # the first of equals


def cut(
    image: Image.Image, profile: Profile, record: LayoutRecord, resample: Image.Resampling
) -> list[Image.Image]:
    """The whole image squeezed to a tile, then the grid's tiles, row by row; of one tile the image itself."""
    if _in_one_run(profile):
        return [image]
    (height, width), (across, down) = profile.size, _canvas(profile)
    resized = image.resize(_fitted(image.size, profile), resample=resample)
    canvas = Image.new("RGB", (across, down))
    canvas.paste(resized, ((across - resized.width) // 2, (down - resized.height) // 2))
    return [image.resize((width, height), resample=resample), *cut_up(canvas, profile)]


def tiles(size: Size, profile: Profile) -> list[Tile]:
    """The whole image, then what each of the grid's tiles shows of it; padding reaches outside."""
    if _in_one_run(profile):
        return [Tile((0, 0, *size), size)] * profile.tiles
    (height, width), (across, down) = profile.size, _canvas(profile)
    fitted = _fitted(size, profile)
    left, top = (across - fitted[0]) // 2, (down - fitted[1]) // 2
    wide, high = size[0] / fitted[0], size[1] / fitted[1]
    found = [Tile((0.0, 0.0, float(size[0]), float(size[1])), (width, height))]
    for y in range(0, down, height):
        for x in range(0, across, width):
            box = ((x - left) * wide, (y - top) * high, (x + width - left) * wide, (y + height - top) * high)
            found.append(Tile(box, (width, height)))
    return found


def block(profile: Profile, size: Size, record: LayoutRecord) -> Block:
    """The first tile's tokens, then the grid's row by row, each row with its newline; in one run, one after all."""
    (rows, columns), first = profile.token_grid, math.prod(profile.token_grid)
    if _in_one_run(profile):
        visual = np.append(np.arange(profile.visual_tokens), NEWLINE)
        return Block.of_cells(visual, np.tile(np.arange(len(visual)), (record.axes, 1)), len(visual))
    top, left, high, wide = _inside(profile, size, record)
    y, x = np.divmod(np.arange(high * wide), wide)
    y, x = y + top, x + left
    tile = 1 + y // rows * profile.tile_grid[1] + x // columns
    cells = (tile * first + y % rows * columns + x % columns).reshape(high, wide)
    if _resampling(high, wide, profile, record) is not None:  # counted as `resampled` gives them
        high, wide = _most(high, wide, profile, record)
        cells = first + np.arange(high * wide).reshape(high, wide)
    grid = np.concatenate([cells, np.full((high, 1), NEWLINE)], axis=1)
    visual = np.concatenate([np.arange(first), grid.ravel()])
    return Block.of_cells(visual, np.tile(np.arange(len(visual)), (record.axes, 1)), len(visual))


def stays(profile: Profile, whole: Block, index: Index, record: LayoutRecord) -> npt.NDArray[np.bool_]:
    """Which newlines stand: none, all, or that of each row of which a token is kept."""
    newline: npt.NDArray[np.bool_] = whole.visual == NEWLINE
    match NEWLINES[record.numbers.get("newlines", 0)]:
        case "drop":
            return newline & False
        case "all":
            return newline
    # A row ends with its newline; the tokens of a tile before the grid come before all rows.
    ends, before = np.flatnonzero(newline), 0 if _in_one_run(profile) else math.prod(profile.token_grid)
    starts = np.concatenate([[before], ends[:-1] + 1])[: len(ends)]
    kept = np.concatenate([[0], np.cumsum(np.isin(whole.visual, index))])
    found: npt.NDArray[np.bool_] = np.zeros_like(newline)
    found[ends] = kept[ends] > kept[starts]
    return found


def beside(whole: Block, count: int, record: LayoutRecord) -> int:
    """Newlines of an image of which `count` visual tokens are kept, at most."""
    newlines = int((whole.visual == NEWLINE).sum())
    return {"drop": 0, "rows": min(newlines, count), "all": newlines}[
        NEWLINES[record.numbers.get("newlines", 0)]
    ]


def valid(profile: Profile, size: Size) -> npt.NDArray[np.bool_]:
    """[N] which tokens show something of the image."""
    found = np.zeros(profile.visual_tokens, np.bool_)
    whole = block(profile, size, _UNPADDED)
    found[whole.visual[whole.visual >= 0]] = True
    return found


def resampled(profile: Profile, size: Size, record: LayoutRecord) -> Resampled | None:
    """What makes of all N features those that the prompt shows, where these are fewer by interpolation."""
    if _in_one_run(profile):
        return None
    _, _, high, wide = _inside(profile, size, record)
    if (weights := _resampling(high, wide, profile, record)) is None:
        return None
    down, across = weights
    whole = block(
        profile, size, record.model_copy(update={"numbers": {"unpad": record.numbers.get("unpad", 0)}})
    )
    first = math.prod(profile.token_grid)
    cells = whole.visual[first:].reshape(high, wide + 1)[:, :-1]

    def apply(features: Features) -> Features:
        grid = features[cells].astype(np.float32)
        smaller = np.einsum("yh,hwd->ywd", down, grid)
        smaller = np.einsum("xw,ywd->yxd", across, smaller).reshape(-1, features.shape[-1])
        return np.concatenate([features[:first], smaller.astype(features.dtype)])

    return apply


def _in_one_run(profile: Profile) -> bool:
    """Whether no tile stands before the others, so that all tokens are one run: one tile, or the frames of a video."""
    return profile.tiles == math.prod(profile.tile_grid)


def _canvas(profile: Profile) -> Size:
    """Width and height of the grid of tiles, in pixels."""
    (rows, columns), (height, width) = profile.tile_grid, profile.size
    return columns * width, rows * height


def _fitted(size: Size, profile: Profile) -> Size:
    """The image's size once it fits the grid."""
    (width, height), (across, down) = size, _canvas(profile)
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down


def _inside(profile: Profile, size: Size, record: LayoutRecord) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of the grid's tokens that the prompt shows."""
    (tile_rows, tile_columns), (rows, columns) = profile.tile_grid, profile.token_grid
    high, wide = tile_rows * rows, tile_columns * columns
    top = left = 0
    if record.numbers.get("unpad"):
        width, height = size
        # transformers rounds to seven places first: what is a hair below a whole number counts as that.
        if width / height > wide / high:
            top = (high - int(round(height * (wide / width), 7))) // 2
        else:
            left = (wide - int(round(width * (high / height), 7))) // 2
    return top, left, high - 2 * top, wide - 2 * left


def _ratio(high: int, wide: int, profile: Profile, record: LayoutRecord) -> float:
    most = record.numbers.get("most", 0) * math.prod(profile.token_grid)
    return math.sqrt(high * wide / most) if most else 0.0


def _most(high: int, wide: int, profile: Profile, record: LayoutRecord) -> tuple[int, int]:
    ratio = _ratio(high, wide, profile, record)
    return int(high // ratio), int(wide // ratio)


def _resampling(
    high: int, wide: int, profile: Profile, record: LayoutRecord
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """Bilinear weights of the rows [h, H] and of the columns [w, W]; None where the grid is small enough."""
    if _ratio(high, wide, profile, record) <= _SLACK:
        return None
    rows, columns = _most(high, wide, profile, record)
    return bilinear(rows, high), bilinear(columns, wide)


def bilinear(outputs: int, inputs: int) -> npt.NDArray[np.float32]:
    """[outputs, inputs] weights of torch's bilinear interpolation along an axis, corners not aligned."""
    scale = np.float32(inputs) / np.float32(outputs)
    at = np.maximum((np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(np.floor(at).astype(np.int64), inputs - 1)
    high = np.minimum(low + 1, inputs - 1)
    part = at - low.astype(np.float32)
    weights = np.zeros((outputs, inputs), np.float32)
    np.add.at(weights, (np.arange(outputs), low), 1 - part)
    np.add.at(weights, (np.arange(outputs), high), part)
    return weights


RULE = Rule(
    problem=problem,
    among=among,
    choose=choose,
    cut=cut,
    tiles=tiles,
    block=block,
    stays=stays,
    beside=beside,
    valid=valid,
    resampled=resampled,
)
