"""EViT: at three layers of the tower the least attended tokens become one (ICLR 2022).

Source: arXiv 2202.07800; youweiliang/evit@5ca95a7, evit.py.
Differs from the reference: kept tokens stay in raster order; the fused one takes the place of the most attended it holds.
Without a CLS token, the attention received from all patches stands in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import Depth, Options, Reducer, Reduction, Site
from fico_export.reducers.stages.select import (
    in_raster_order,
    mask_to_indices,
    take,
    top_indices,
    top_mask,
)


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """The K − 1 of [B, N, C] with the most attention from CLS, and the attention-weighted sum of the rest."""
    attention = cues.cls_attention()
    kept = top_mask(attention, keep - 1)
    dropped = torch.where(kept, 0.0, attention)
    fused = (dropped[:, None] @ tokens.to(torch.float32)).to(tokens.dtype)
    stands_for = top_indices(torch.where(kept, -1.0, attention), 1)
    if keep == 1:
        return Reduction(fused, stands_for)
    indices = mask_to_indices(kept, keep - 1)
    values = torch.cat([take(tokens, indices), fused], dim=1)
    return Reduction(*in_raster_order(values, torch.cat([indices, stands_for], dim=1)))


def schedule(visual_tokens: int, keep: int, depth: Depth, options: Options) -> dict[int, int]:
    """N → K by equal ratios at layers 7, 13 and 19 of 24, scaled to the tower's depth."""
    layers = sorted({min(depth.used - 1, depth.total * layer // 24) for layer in (7, 13, 19)})
    result, left = {}, visual_tokens
    for i, layer in enumerate(layers, 1):
        target = round(visual_tokens * (keep / visual_tokens) ** (i / len(layers)))
        if target < left:
            result[layer] = left = target
    return result


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_LAYER,
    source="arXiv 2202.07800; github.com/youweiliang/evit",
    filter="attention from CLS",
    correlate="all dropped tokens go to one",
    compress="attention-weighted sum",
    options=Options,
    cues=frozenset({"cls_attention"}),
    schedule=schedule,
    without_cls="attention received from all tokens in place of CLS attention",
)
