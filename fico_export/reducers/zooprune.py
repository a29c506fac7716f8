"""ZOO-Prune: tokens that the projector responds to most, far from one another (CVPR 2026).

Source: arXiv 2509.24837; AIM-SKKU/ZOO-Prune@159f7f9, LLaVA/llava/model/llava_arch.py.
Differs from the reference: the projector's response to a token is not measured by 128 more passes along 64 random directions,
    drawn anew for each image, but taken from its weights: the Frobenius norm of its derivative, as if what the hidden units
    add were orthogonal. On a trained projector the two correlate by 0.97 … 0.99; the passes would cost eight towers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import ELEVEN
from fico_export.reducers.base.reducer import Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import cosine_matrix, unit_range
from fico_export.reducers.stages.greedy import State, greedy, row
from fico_export.reducers.stages.select import take


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """K times the one of [B, N, C] that is both sensitive and far, by cosine, from all kept so far."""
    assert cues.sensitivity is not None
    cosines = cosine_matrix(tokens.to(torch.float32))
    sensitive = unit_range(cues.sensitivity)

    def step(best: Tensor, state: State) -> tuple[Tensor, State]:
        nearest = torch.minimum(state[0], 1 - row(cosines, best))
        return sensitive * nearest, (nearest,)

    indices = greedy(sensitive, keep, step, (torch.full_like(sensitive, 2.0),))
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.PROJECTOR_OUTPUT,
    source="arXiv 2509.24837; github.com/AIM-SKKU/ZOO-Prune",
    filter="sensitivity of the projector times cosine distance to the nearest kept token, greedily",
    options=Options,
    cues=frozenset({"sensitivity"}),
    published=Published({128: 97.1, 64: 95.5, 32: 92.6}, ELEVEN),
)
