"""Average pooling: K cells that tile the grid, each the area-weighted mean of the patches under it."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import Options, Reducer, Reduction, Site
from fico_export.reducers.stages.select import constant_indices

_MAX_ASPECT = 2  # a cell no longer than twice its width; beyond that, rows of unequal length serve better


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """[B, N, C] → [B, K, C] by one constant averaging matrix; indices are the patches at the cells' centres."""
    weights, centres = averaging_matrix(cues.grid, keep)
    matrix = torch.tensor(weights, dtype=torch.float32, device=tokens.device)
    pooled = (matrix @ tokens.to(torch.float32)).to(tokens.dtype)
    return Reduction(pooled, constant_indices(centres, tokens))


def columns_per_row(grid: tuple[int, int], keep: int) -> list[int]:
    """How many cells each row of cells holds, from the top: equal where K factors well, else as even as can be."""
    height, width = grid

    def elongation(rows: int) -> Fraction:
        """Longer side of a cell over the shorter, exact: two layouts may tie, and then have the fewer rows."""
        aspect = Fraction(width * rows * rows, height * keep)
        return max(aspect, 1 / aspect)

    factors = [rows for rows in range(1, height + 1) if keep % rows == 0 and keep // rows <= width]
    if factors and elongation(best := min(factors, key=elongation)) <= _MAX_ASPECT:
        return [keep // best] * best
    rows = min(height, keep, max(-(-keep // width), math.floor(math.sqrt(keep * height / width) + 0.5)))
    return [(b + 1) * keep // rows - b * keep // rows for b in range(rows)]


def averaging_matrix(grid: tuple[int, int], keep: int) -> tuple[list[list[float]], list[int]]:
    """[K, N] weights by area overlap, rows summing to one, and the raster position of each cell's centre."""
    height, width = grid
    layout = columns_per_row(grid, keep)
    weights: list[list[float]] = []
    centres: list[int] = []
    for row, columns in enumerate(layout):
        down = _overlap(row, len(layout), height)
        for column in range(columns):
            across = _overlap(column, columns, width)
            weights.append([y * x for y in down for x in across])
            centres.append(_centre(row, len(layout), height) * width + _centre(column, columns, width))
    return weights, centres


def _overlap(cell: int, cells: int, patches: int) -> list[float]:
    """Share of each unit patch in cell number `cell` of `cells` equal ones along a side; sums to one."""
    low, high = cell * patches / cells, (cell + 1) * patches / cells
    return [max(0.0, min(high, p + 1) - max(low, p)) / (high - low) for p in range(patches)]


def _centre(cell: int, cells: int, patches: int) -> int:
    """The patch that holds the centre of the cell."""
    return (2 * cell + 1) * patches // (2 * cells)


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="baseline",
    filter="keeps no token as it is",
    correlate="patch to the cells it overlaps",
    compress="area-weighted mean",
    options=Options,
    whole_grid=True,
)
