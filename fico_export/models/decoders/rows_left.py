"""Which rows of a sequence are left once an image's visual tokens are reduced, wherever among the others these stand.

Written as comparisons, sums and gathers, which every parser takes: shapes follow from counts alone.

Letters: B batch, S rows of the sequence, n live visual tokens, K of them kept, T = S − (n − K) rows that are left.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fico_export.reducers.stages.select import take


class RowsLeft(NamedTuple):
    """What is left, in the order in which it stood.

    Attributes:
        source: [B, T] int64, which of the S rows each row was.
        visual: [B, K] int64, ascending: the rows where the kept tokens stand now.
        is_kept: [B, T] bool, which rows these are.
        nth: [B, T] int64, which kept token stands in such a row; of the others any.
    """

    source: Tensor
    visual: Tensor
    is_kept: Tensor
    nth: Tensor

    def put(self, kept: Tensor, others: Tensor) -> Tensor:
        """[B, T, C]: kept tokens [B, K, C] in their rows, and in all others what of [B, S, C] stood there."""
        return torch.where(self.is_kept[..., None], take(kept, self.nth), take(others, self.source))


def rows_left(visual: Tensor, kept: Tensor, total: int) -> RowsLeft:
    """Close the gaps that dropped visual tokens leave; no other row is dropped.

    Args:
        visual: [B, n] int64, ascending: rows where the live visual tokens stand.
        kept: [B, K] int64, ascending: which of the n are kept.
        total: S.
    """
    keep, dropped = kept.shape[1], visual.shape[1] - kept.shape[1]
    t = source = torch.arange(total - dropped, device=visual.device).expand(len(visual), -1)
    if dropped:
        source = not_among(take(visual, missing(kept, visual.shape[1])), t)
        visual = take(visual, kept) - (kept - torch.arange(keep, device=kept.device))
    nth = count_up_to(visual, t - 1).clamp(max=keep - 1)
    return RowsLeft(source, visual, take(visual, nth) == t, nth)


def missing(indices: Tensor, n: int) -> Tensor:
    """[B, n − K] int64, ascending: the numbers below n that are not among ascending indices [B, K]."""
    j = torch.arange(n - indices.shape[1], device=indices.device)
    return not_among(indices, j.expand(len(indices), -1))


def not_among(indices: Tensor, j: Tensor) -> Tensor:
    """[B, m] int64: the j-th of the numbers that are not among ascending indices [B, K], for each j [B, m] from 0.

    It is j and as many more as the indices before it: those whose number less the indices before them is j at most.
    """
    before = torch.arange(indices.shape[1], device=indices.device)
    return j + count_up_to(indices - before, j)


def count_up_to(values: Tensor, bounds: Tensor) -> Tensor:
    """[B, m] int64: how many of values [B, K] are at most each of bounds [B, m]."""
    within = values[:, None, :] <= bounds[:, :, None]
    return within.to(torch.int32).sum(-1, dtype=torch.int32).to(torch.int64)
