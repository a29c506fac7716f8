"""SCOPE: tokens that cover most of the image, weighted by attention from CLS (NeurIPS 2025).

Source: arXiv 2510.24214; kinredon/SCOPE@6bf7306, scope/clip_encoder.py.
Without a CLS token, the attention received from all patches stands in.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import EIGHT, EIGHT_IN_TILES
from fico_export.reducers.base.reducer import InTiles, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import cosine_matrix
from fico_export.reducers.stages.greedy import largest_cover
from fico_export.reducers.stages.select import take


class ScopeOptions(Options):
    """Hyper-parameters; the default is the paper's."""

    alpha: float = Field(1.0, ge=0, le=8, description="exponent of the attention (paper 1)")


def apply(tokens: Tensor, cues: Cues, keep: int, options: ScopeOptions) -> Reduction:
    """K times the one of [B, N, C] that adds most to what the kept ones are similar to."""
    cosines = cosine_matrix(tokens.to(torch.float32))
    indices = largest_cover(cosines, keep, cues.cls_attention() ** options.alpha)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="arXiv 2510.24214; github.com/kinredon/SCOPE",
    filter="gain in covered similarity times attention from CLS, greedily",
    options=ScopeOptions,
    cues=frozenset({"cls_attention"}),
    without_cls="attention received from all tokens in place of CLS attention",
    published=Published({128: 97.8, 64: 96.0, 32: 93.5}, EIGHT),
    in_tiles=InTiles("--positions compact", {640: 99.8, 320: 97.8, 160: 94.4}, EIGHT_IN_TILES),
)
