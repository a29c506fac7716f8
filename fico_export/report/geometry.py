"""From the tower's patches back to the pixels of the picture that they were cut from.

A pixel belongs to the patch that holds its centre; what was cropped away, or lies in padding, belongs to none.
Letters: N patches, row by row; H, W of a picture, at a scale of its own where it is drawn larger or smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UNSEEN = -1


@dataclass(frozen=True)
class View:
    """Where the patches of a tower lie in a picture.

    Attributes:
        grid: rows and columns of patches.
        box: (left, top, right, bottom) of all patches in pixels of the upright picture; reaches outside where the tower sees
            padding.
    """

    grid: tuple[int, int]
    box: tuple[float, float, float, float]

    def patch_of_pixels(self, width: int, height: int, scale: float = 1.0) -> npt.NDArray[np.int64]:
        """The patch of each pixel, [H, W], of a picture drawn `scale` times as large; `UNSEEN` for none."""
        left, top, right, bottom = (edge * scale for edge in self.box)
        rows, columns = self.grid
        across = np.floor((np.arange(width) + 0.5 - left) * columns / (right - left)).astype(np.int64)
        down = np.floor((np.arange(height) + 0.5 - top) * rows / (bottom - top)).astype(np.int64)
        inside = ((down >= 0) & (down < rows))[:, None] & ((across >= 0) & (across < columns))
        return np.where(inside, down[:, None] * columns + across, UNSEEN)

    def patch_boxes(self, scale: float = 1.0) -> npt.NDArray[np.float64]:
        """(left, top, right, bottom) of each patch, [N, 4], likewise."""
        left, top, right, bottom = self.box
        rows, columns = self.grid
        row, column = np.divmod(np.arange(rows * columns), columns)
        wide, high = (right - left) / columns, (bottom - top) / rows
        edges = [left + column * wide, top + row * high, left + (column + 1) * wide, top + (row + 1) * high]
        return np.stack(edges, axis=1) * scale


def view(
    crop_box: tuple[float, float, float, float], image_size: int, patch_size: int, grid: tuple[int, int]
) -> View:
    """The patches within what the tower sees of a picture.

    Args:
        crop_box: `ImageProcessor.crop_box` of the picture.
        image_size: side of what the tower sees, in its own pixels.
        patch_size: side of a patch, likewise; what it leaves of the side, at the right and lower end, is in no patch.
        grid: rows and columns of patches.
    """
    left, top, right, bottom = crop_box
    down, across = (patches * patch_size / image_size for patches in grid)
    return View(grid, (left, top, left + (right - left) * across, top + (bottom - top) * down))


def patches_of(keep_index: npt.NDArray[np.int64], kept_aside: int) -> npt.NDArray[np.int64]:
    """Raster positions of the patches among kept tokens [K], of which the first `kept_aside` positions are no patches (CLS)."""
    return keep_index[keep_index >= kept_aside] - kept_aside
