"""Cen-Prune on DivPrune: distances between centred tokens, times each token's distinctiveness (2026).

Source: arXiv 2608.30263; no code published.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import ELEVEN
from fico_export.reducers.base.reducer import Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import (
    cosine_matrix,
    isolation,
    mean_of_others,
    mean_token,
    unit_range,
)
from fico_export.reducers.stages.greedy import State, greedy, row
from fico_export.reducers.stages.select import take


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """K times the one of [B, N, C] that is both unlike the mean and far from all kept so far."""
    features = tokens.to(torch.float32)
    cosines = cosine_matrix(features)
    centred = cosine_matrix(features - mean_token(features, cues.valid))
    distinct = unit_range(-mean_of_others(cosines, cues.valid), cues.valid)

    def step(best: Tensor, state: State) -> tuple[Tensor, State]:
        nearest = torch.minimum(state[0], 1 - row(centred, best))
        return distinct * nearest, (nearest,)

    first = isolation(cosines, cues.valid)
    indices = greedy(first, keep, step, (torch.full_like(first, 2.0),), cues.valid)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.PROJECTOR_OUTPUT,
    source="arXiv 2608.30263",
    filter="distance to the nearest kept token after centring, times unlikeness to the mean, greedily",
    options=Options,
    cues=frozenset({"valid"}),
    published=Published({128: 97.7, 64: 96.2, 32: 93.4}, ELEVEN),
)
