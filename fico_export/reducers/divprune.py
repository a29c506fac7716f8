"""DivPrune: the K tokens whose smallest distance to one another is largest, found greedily (CVPR 2025).

Source: arXiv 2503.02175; vbdi/divprune@799e2d9, LLaVA/llava/model/llava_arch.py.
Differs from the reference: a token once kept is out of the race by a mask, not by its distance of 0 to itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import EIGHT_IN_TILES, ELEVEN
from fico_export.reducers.base.reducer import InTiles, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import cosine_matrix, isolation
from fico_export.reducers.stages.greedy import State, greedy, row
from fico_export.reducers.stages.select import take


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """K times the one of [B, N, C] that is farthest, by cosine, from all kept so far."""
    cosines = cosine_matrix(tokens.to(torch.float32))

    def step(best: Tensor, state: State) -> tuple[Tensor, State]:
        nearest = torch.minimum(state[0], 1 - row(cosines, best))
        return nearest, (nearest,)

    first = isolation(cosines, cues.valid)
    indices = greedy(first, keep, step, (torch.full_like(first, 2.0),), cues.valid)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.PROJECTOR_OUTPUT,
    source="arXiv 2503.02175; github.com/vbdi/divprune",
    filter="cosine distance to the nearest kept token, greedily",
    options=Options,
    cues=frozenset({"valid"}),
    published=Published({128: 96.9, 64: 94.8, 32: 91.8}, ELEVEN),
    in_tiles=InTiles(
        "--tiling joint --unpad --positions compact",
        {640: 98.4, 320: 96.0, 160: 92.4},
        EIGHT_IN_TILES,
        "newline vectors are no candidates; all are equal, so the reference keeps one of them at most",
    ),
)
