"""Average pooling: K cells that tile the grid, each the area-weighted mean of the patches under it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import Options, Reducer, Reduction, Site
from fico_export.reducers.stages.select import constant_indices

_MAX_ASPECT = 2.0  # a cell no longer than twice its width; beyond that, rows of unequal length serve better


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """[B, N, C] → [B, K, C] by one constant averaging matrix; indices are the patches at the cells' centres."""
    weights, centres = averaging_matrix(cues.grid, keep)
    matrix = torch.tensor(weights, dtype=torch.float32, device=tokens.device)
    pooled = (matrix @ tokens.to(torch.float32)).to(tokens.dtype)
    return Reduction(pooled, constant_indices(centres, tokens))


def columns_per_row(grid: tuple[int, int], keep: int) -> list[int]:
    """How many cells each row of cells holds, from the top: equal where K factors well, else as even as can be."""
    height, width = grid
    pairs = [(r, keep // r) for r in range(1, height + 1) if keep % r == 0 and keep // r <= width]
    if pairs:
        rows, columns = min(pairs, key=lambda p: abs(math.log(width / p[1] * p[0] / height)))
        aspect = (width / columns) / (height / rows)
        if max(aspect, 1 / aspect) <= _MAX_ASPECT:
            return [columns] * rows
    rows = min(height, max(-(-keep // width), math.floor(math.sqrt(keep * height / width) + 0.5)))
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
)
