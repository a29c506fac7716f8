"""VisPruner: half of K by attention from CLS, half by dropping near-duplicates among the others (ICCV 2025).

Source: arXiv 2412.01818; Theia-4869/VisPruner@aefa01a, llava/model/llava_arch.py.
Differs from the reference: selected before the projector; the same tokens.
Each round's pairs follow from the order of the last one's scores, so where two scores tie in FP32 (about one image in four)
    rounding decides on a good part of the second half.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import ELEVEN
from fico_export.reducers.base.reducer import Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import cosine_matrix
from fico_export.reducers.stages.select import mask_to_indices, order, take

_AT_ONCE = 8  # tokens dropped in one round


class VisprunerOptions(Options):
    """Hyper-parameters; the default is the paper's."""

    important: float = Field(0.5, ge=0, le=1, description="share of K chosen by attention (paper 0.5)")


def apply(tokens: Tensor, cues: Cues, keep: int, options: VisprunerOptions) -> Reduction:
    """Of [B, N, C] the most attended, and of the others those least like one another."""
    cosines = cosine_matrix(tokens.to(torch.float32))
    by_attention = order(cues.cls_attention())
    important = int(options.important * keep)
    rest = by_attention[:, important:]
    while (surplus := rest.shape[1] - (keep - important)) > 0:
        evens, odds = rest[:, 0::2], rest[:, 1::2]
        # With one token left there is no odd one to be like.
        like = take(cosines, odds).amax(1) if odds.shape[1] else cosines[:, 0]
        # The order of what stays decides on the next pairs: by falling likeness, as the reference leaves it.
        ranked = evens.gather(1, order(like.gather(1, evens)))
        rest = torch.cat([ranked[:, min(_AT_ONCE, surplus, evens.shape[1]) :], odds], dim=1)
    place = torch.arange(tokens.shape[1], device=tokens.device)
    chosen = torch.cat([by_attention[:, :important], rest], dim=1)
    kept = (chosen[:, :, None] == place).to(torch.float32).amax(1) > 0
    indices = mask_to_indices(kept, keep)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="arXiv 2412.01818; github.com/Theia-4869/VisPruner",
    filter="attention from CLS, then likeness among the others, eight at a time",
    options=VisprunerOptions,
    cues=frozenset({"cls_attention"}),
    without_cls="attention received from all tokens in place of CLS attention",
    published=Published({128: 97.0, 64: 94.1, 32: 89.3}, ELEVEN),
)
