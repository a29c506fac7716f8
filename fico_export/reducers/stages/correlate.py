"""Correlate: where the information of the filtered-out tokens should go."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fico_export.reducers.stages.select import first_of_maxima, take


def pair(affinity: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """Affinity of each source row to each target column.

    Args:
        affinity: [B, n, n].
        sources: [B, r] int64.
        targets: [B, t] int64.

    Returns:
        [B, r, t].
    """
    rows = take(affinity, sources)
    return take(rows.transpose(1, 2), targets).transpose(1, 2)


def targets_per_source(epsilon: float, targets: int) -> int:
    """How many of `targets` distinct values lie above their interpolated epsilon-quantile.

    The count is the same for every row, so a "token-adaptive" threshold is a top-k with this constant.
    """
    # round: 0.002 · 500 is a hair above 1 in floating point, and must count as 1.
    return min(targets, max(1, math.ceil(round((1 - epsilon) * (targets - 1), 9))))


def strongest(correlation: Tensor, k: int) -> Tensor:
    """[B, r, t] bool: the k largest entries of each row, ties to the lower index. k is small."""
    chosen = torch.zeros_like(correlation, dtype=torch.bool)
    for _ in range(k):
        chosen = chosen | first_of_maxima(correlation.masked_fill(chosen, float("-inf")))
    return chosen
