"""Uniform sampling: every N/K-th token in raster order, whatever the image."""

from __future__ import annotations

from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import Options, Reducer, Reduction, Site
from fico_export.reducers.stages.select import constant_indices, take


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """Tokens floor((i + 0.5)·N / K) of [B, N, C]."""
    n = tokens.shape[1]
    indices = constant_indices([(2 * i + 1) * n // (2 * keep) for i in range(keep)], tokens)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="baseline",
    filter="a fixed stride in raster order",
    options=Options,
)
