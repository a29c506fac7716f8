"""From the tower's patches back to the pixels of the image that they were cut from.

A pixel belongs to the patch that holds its centre; what was cropped away, or lies in padding, belongs to none.
Where the merger joins patches, a cell is what it makes one visual token of. Tiles may overlap, as a thumbnail does.
Letters: T tiles, N cells of all of them, tile by tile and row by row; H, W of an image, at a scale of its own where it is
drawn larger or smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fico_export.bundle.profiles import Profile
from fico_export.runtime.inputs.layouts.base import Box, Tile

UNSEEN = -1


@dataclass(frozen=True)
class View:
    """Where the cells of a tower's tiles lie in an image.

    Attributes:
        grid: rows and columns of a tile's cells.
        boxes: all cells of each tile, in pixels of the upright image; they reach outside where the tower sees padding.
    """

    grid: tuple[int, int]
    boxes: tuple[Box, ...]

    @property
    def cells(self) -> int:
        """N."""
        return len(self.boxes) * self.grid[0] * self.grid[1]

    @property
    def box(self) -> Box:
        """All of it."""
        edges = np.array(self.boxes)
        (left, top), (right, bottom) = edges[:, :2].min(0).tolist(), edges[:, 2:].max(0).tolist()
        return left, top, right, bottom

    def patch_of_pixels(self, width: int, height: int, scale: float = 1.0) -> npt.NDArray[np.int64]:
        """The cell of each pixel in each tile, [T, H, W], of an image drawn `scale` times as large; `UNSEEN` for none."""
        return np.stack([self._of_pixels(tile, width, height, scale) for tile in range(len(self.boxes))])

    def patch_boxes(self, scale: float = 1.0) -> npt.NDArray[np.float64]:
        """(left, top, right, bottom) of each cell, [N, 4], likewise."""
        return np.concatenate([self._boxes(box) for box in self.boxes]) * scale

    def _of_pixels(self, tile: int, width: int, height: int, scale: float) -> npt.NDArray[np.int64]:
        left, top, right, bottom = (edge * scale for edge in self.boxes[tile])
        rows, columns = self.grid
        across = np.floor((np.arange(width) + 0.5 - left) * columns / (right - left)).astype(np.int64)
        down = np.floor((np.arange(height) + 0.5 - top) * rows / (bottom - top)).astype(np.int64)
        inside = ((down >= 0) & (down < rows))[:, None] & ((across >= 0) & (across < columns))
        return np.where(inside, (tile * rows + down[:, None]) * columns + across, UNSEEN)

    def _boxes(self, box: Box) -> npt.NDArray[np.float64]:
        left, top, right, bottom = box
        rows, columns = self.grid
        row, column = np.divmod(np.arange(rows * columns), columns)
        wide, high = (right - left) / columns, (bottom - top) / rows
        edges = [left + column * wide, top + row * high, left + (column + 1) * wide, top + (row + 1) * high]
        return np.stack(edges, axis=1)


def view(profile: Profile, shown: Sequence[tuple[Tile, Box]]) -> View:
    """The cells within what the tower sees of an image.

    What the patch size leaves of a side, at the right and lower end, is in no cell.

    Args:
        profile: of the image.
        shown: each tile, and what the tower sees of it, in the tile's own pixels: `ImageProcessor.crop_box` of its size.
    """
    down, across = (
        patches * profile.patch_size / side
        for patches, side in zip(profile.patch_grid, profile.size, strict=True)
    )
    boxes: list[Box] = []
    for tile, (left, top, right, bottom) in shown:
        (x, y, x1, y1), (width, height) = tile.box, tile.size
        wide, high = (x1 - x) / width, (y1 - y) / height
        ends = (left + (right - left) * across, top + (bottom - top) * down)
        boxes.append((x + left * wide, y + top * high, x + ends[0] * wide, y + ends[1] * high))
    return View(profile.token_grid, tuple(boxes))


def patches_of(keep_index: npt.NDArray[np.int64], profile: Profile) -> npt.NDArray[np.int64]:
    """The cells among kept tokens [K]; what stands before the cells of a tile, such as a CLS token, is none."""
    rows, columns = profile.token_grid
    tile, place = np.divmod(keep_index, profile.aside + rows * columns)
    return (tile * rows * columns + place - profile.aside)[place >= profile.aside]
