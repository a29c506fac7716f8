"""HiPrune: anchors of a middle layer with their neighbours, then the tokens that a deep layer attends to (AAAI 2026).

Source: arXiv 2508.00553; Danielement321/HiPrune@6e83a12, LLaVA/llava/model/llava_arch.py.
Differs from the reference: selected before the projector; where anchors and neighbours exceed K, the deep layer decides.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import NINE_IN_TILES
from fico_export.reducers.base.reducer import Depth, InTiles, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.select import take, top_indices, top_mask

_FIRST = 10.0  # added to the score of what comes first: attention is at most 1


class HipruneOptions(Options):
    """Hyper-parameters; the default is the paper's."""

    alpha: float = Field(
        0.1, ge=0, le=1, description="share of K for anchors and their neighbours (paper 0.1)"
    )


def apply(tokens: Tensor, cues: Cues, keep: int, options: HipruneOptions) -> Reduction:
    """Of [B, N, C] the anchors, the cells beside them, and the K − … that receive the most attention in the last layer."""
    assert cues.earlier is not None
    n, columns = tokens.shape[1], cues.grid[1]
    deep = cues.received()
    anchors = min(n, round(keep * options.alpha / 5))
    if anchors:
        anchor = top_mask(cues.earlier.received(), anchors).to(torch.float32)
        place = torch.arange(n, device=tokens.device)
        # The reference clamps at the ends and lets a row's end run into the next row.
        beside = [(place + shift).clamp(0, n - 1) for shift in (-1, 1, -columns, columns)]
        near = torch.stack([place, *beside])  # [5, N] where each token's mark goes
        marks = (near[:, :, None] == place).to(torch.float32).amax(0)  # [N, N]
        deep = deep + _FIRST * ((anchor[:, None] @ marks).squeeze(1) > 0)
    indices = top_indices(deep, keep)
    return Reduction(take(tokens, indices), indices)


def object_layer(depth: Depth) -> int:
    """The ninth layer of 24, scaled to the tower's depth."""
    return min(depth.used - 1, depth.total // 3)


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="arXiv 2508.00553; github.com/Danielement321/HiPrune",
    filter="attention received in a middle layer, neighbours of the best, attention received in the last",
    options=HipruneOptions,
    cues=frozenset({"received", "earlier"}),
    earlier_layer=object_layer,
    whole_grid=True,
    published=Published({128: 95.4, 64: 89.2}, "9 benchmarks, EADP (ECCV 2026)"),
    in_tiles=InTiles("--positions compact", {640: 97.1, 320: 94.0, 160: 84.8}, NINE_IN_TILES),
)
