"""CLS top-k: the K patches that the class token attends to most (FasterVLM).

Source: arXiv 2412.01818; Theia-4869/FasterVLM@f5d5f12.
Differs from the reference: selected before the projector, which then has K tokens to project; the same tokens.
Without a CLS token, the attention received from all patches stands in.
"""

from __future__ import annotations

from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import InTiles, Options, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import only
from fico_export.reducers.stages.select import take, top_indices


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """The K of [B, N, C] with the most attention from CLS."""
    indices = top_indices(only(cues.cls_attention(), cues.valid), keep)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="arXiv 2412.01818; github.com/Theia-4869/FasterVLM",
    filter="attention from CLS",
    options=Options,
    cues=frozenset({"cls_attention", "valid"}),
    without_cls="attention received from all tokens in place of CLS attention",
    in_tiles=InTiles(
        "--positions compact", protocol="FasterVLM: images resized to 672×672, no figures that could be read"
    ),
)
