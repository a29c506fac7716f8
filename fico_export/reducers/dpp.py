"""DPP: the K tokens that span the largest volume, found greedily; CDPruner without its text (NeurIPS 2025).

Source: arXiv 2506.10967; Theia-4869/CDPruner@9541616, llava/model/llava_arch.py.
Differs from the reference: no relevance to a prompt, so that one graph serves any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import Options, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import cosine_matrix
from fico_export.reducers.stages.greedy import State, greedy, row
from fico_export.reducers.stages.select import take

_ROUNDING = 1e-6


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """K times the one of [B, N, C] that those kept so far explain least: greedy MAP by an incremental Cholesky."""
    cosines = cosine_matrix(tokens.to(torch.float32))
    place = torch.arange(keep, device=tokens.device)

    def step(best: Tensor, state: State) -> tuple[Tensor, State]:
        left, factor, turn = state  # [B, N] unexplained, [B, K, N] rows so far, [1] which row is next
        known = (row(factor.transpose(1, 2), best)[:, None] @ factor).squeeze(1)
        rest = left.gather(1, best[:, None])
        # Once K exceeds the tokens' rank, what is left is rounding: dividing by it would blow up.
        new = torch.where(
            rest > _ROUNDING, (row(cosines, best) - known) * rest.clamp_min(_ROUNDING).rsqrt(), 0.0
        )
        factor = torch.where((place == turn)[:, None], new[:, None], factor)
        left = left - new.square()
        return left, (left, factor, turn + 1)

    whole = torch.ones_like(cosines[:, 0])
    factor = torch.zeros(tokens.shape[0], keep, tokens.shape[1], device=tokens.device)
    turn = torch.zeros(1, dtype=torch.int64, device=tokens.device)
    indices = greedy(whole, keep, step, (whole, factor, turn))
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.PROJECTOR_OUTPUT,
    source="arXiv 2506.10967; github.com/Theia-4869/CDPruner",
    filter="what the kept tokens leave unexplained (determinantal point process), greedily",
    options=Options,
)
