"""Drawn over an image: what is kept of it lit, what is dropped darkened, what the tower never sees hatched.

Brightness tells kept from dropped and a hatch seen from unseen, so that nothing depends on telling colours apart.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from fico_export.bundle.belongings import MADE_BY
from fico_export.report.geometry import UNSEEN, View

DARK = 0.28  # brightness of what is dropped
TARGET = (240, 228, 66)  # Okabe and Ito's yellow, which stands out from photographs in every kind of sight
FLOW = (86, 180, 233)
_HATCH_PX = 12
_LINE_ALPHA = 110  # of 255: where many lines run, what is below still shows


def marked() -> PngInfo:
    """Metadata of a PNG file by which the next drawing knows that it may replace it."""
    found = PngInfo()
    found.add_text("Software", MADE_BY)
    return found


def fitted(size: tuple[int, int], longest: int) -> float:
    """The scale at which the longer side of an image of this size is `longest` pixels: a whole number if it is above 1."""
    scale = longest / max(size)
    return scale if scale < 1 else float(max(1, round(scale)))


def lit(
    picture: Image.Image,
    view: View,
    patches: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64] | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """An image with its kept patches as they are and the others darkened.

    Args:
        picture: upright, RGB.
        view: where the patches lie in it.
        patches: raster positions of the kept.
        targets: those among them that others were merged into, which get a frame.
        scale: how many times as large to draw.
    """
    width, height = (max(1, round(side * scale)) for side in picture.size)
    large = picture.resize((width, height), Image.Resampling.LANCZOS) if scale != 1 else picture
    owners = view.patch_of_pixels(width, height, scale)
    pixels = np.asarray(large, np.float32)
    # Lit where some tile shows it: tiles may overlap.
    bright = np.where(np.isin(owners, patches).any(0), 1.0, DARK)[..., None]
    shown = np.where((owners == UNSEEN).all(0)[..., None], _hatched(pixels), pixels * bright)
    drawn = Image.fromarray(shown.round().astype(np.uint8))
    if targets is not None:
        _frame(drawn, view, targets, scale)
    return drawn


def flows(
    picture: Image.Image,
    view: View,
    patches: npt.NDArray[np.int64],
    shares: npt.NDArray[np.float64],
    scale: float = 1.0,
) -> Image.Image:
    """Where each dropped patch went: a line to the kept patch that holds most of it.

    Args:
        picture: upright, RGB.
        view: where the patches lie in it.
        patches: [K] raster positions of the kept.
        shares: [K, N] of each patch, how much of it ended in which kept one; a patch that was dropped for good has none.
        scale: how many times as large to draw.
    """
    drawn = lit(picture, view, patches, None, scale)
    lines = Image.new("RGBA", drawn.size)
    draw = ImageDraw.Draw(lines)
    boxes = view.patch_boxes(scale)
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    reach = float(boxes[0, 2] - boxes[0, 0]) / 10
    for patch in np.flatnonzero(shares.sum(0)):
        target = patches[shares[:, patch].argmax()]
        if patch != target:
            draw.line((x[patch], y[patch], x[target], y[target]), fill=(*FLOW, _LINE_ALPHA), width=1)
            draw.ellipse(
                (x[patch] - reach, y[patch] - reach, x[patch] + reach, y[patch] + reach), fill=(*FLOW, 255)
            )
    drawn.paste(lines, mask=lines)
    _frame(drawn, view, merged_into(patches, shares), scale)
    return drawn


def merged_into(patches: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Of the kept patches [K], those that hold something of more than one patch."""
    targets: npt.NDArray[np.int64] = patches[np.count_nonzero(shares, axis=1) > 1]
    return targets


def _frame(drawn: Image.Image, view: View, patches: npt.NDArray[np.int64], scale: float) -> None:
    """A frame within each patch, on the pixels that are the patch's own."""
    draw = ImageDraw.Draw(drawn)
    for left, top, right, bottom in view.patch_boxes(scale)[patches]:
        line = max(1, round(min(right - left, bottom - top) / 10))
        (x0, x1), (y0, y1) = _pixels(left, right), _pixels(top, bottom)
        if x0 <= x1 and y0 <= y1:
            draw.rectangle((x0, y0, x1, y1), outline=TARGET, width=line)
        if x0 + line < x1 - line and y0 + line < y1 - line:  # shows on what is yellow itself
            draw.rectangle((x0 + line, y0 + line, x1 - line, y1 - line), outline=(0, 0, 0))


def _pixels(low: float, high: float) -> tuple[int, int]:
    """First and last pixel whose centre lies in [low, high)."""
    return math.ceil(low - 0.5), math.ceil(high - 0.5) - 1


def _hatched(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Grey, darkened, with diagonal stripes."""
    grey = pixels.mean(-1, keepdims=True) * 0.35
    y, x = np.indices(pixels.shape[:2])
    striped = ((x + y) // (_HATCH_PX // 2)) % 2 == 0
    hatched: npt.NDArray[np.float32] = np.repeat(np.where(striped[..., None], grey + 40, grey), 3, axis=-1)
    return hatched
