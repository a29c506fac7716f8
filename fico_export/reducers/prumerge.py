"""PruMerge+ at a fixed budget: attended tokens and evenly spaced ones, each with its neighbours' share (ICCV 2025).

Source: arXiv 2403.15388; 42Shawn/LLaVA-PruMerge@097c041, llava/model/multimodal_encoder/clip_encoder.py.
Differs from the reference: a fixed K in place of an outlier count that depends on the image; a quarter of K by attention,
    the rest at an even stride, one fused token; raster order. The paper's own quirk stays: attention and keys are those of the
    layer after the features, heads not split.
Without a CLS token, the attention received from all patches stands in.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import EIGHT
from fico_export.reducers.base.reducer import Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import cosine_matrix, same_token
from fico_export.reducers.stages.select import (
    in_raster_order,
    mask_to_indices,
    take,
    top_indices,
    top_mask,
    top_of_rows,
)


class PrumergeOptions(Options):
    """Hyper-parameters; the default is the released code's."""

    neighbours: int = Field(32, ge=1, le=1024, description="tokens whose share a kept one takes in (code 32)")


def apply(tokens: Tensor, cues: Cues, keep: int, options: PrumergeOptions) -> Reduction:
    """K − 1 of [B, N, C], each with its nearest neighbours weighted by attention, and the weighted sum of the others."""
    assert cues.following is not None
    n = tokens.shape[1]
    wide = tokens.to(torch.float32)
    attention = cues.following.cls_attention()
    attended = 0 if keep == 1 else max(1, keep // 4)
    spaced = keep - 1 - attended
    kept = top_mask(attention, attended)
    if spaced:
        rest = mask_to_indices(~kept, n - attended)
        places = [(2 * i + 1) * rest.shape[1] // (2 * spaced) for i in range(spaced)]
        place = torch.arange(n, device=tokens.device)
        kept = kept | ((rest[:, places][:, :, None] == place).to(torch.float32).amax(1) > 0)

    dropped = torch.where(kept, 0.0, attention)
    fused = dropped[:, None] @ wide
    stands_for = top_indices(torch.where(kept, -1.0, attention), 1)
    if keep == 1:
        return Reduction(fused.to(tokens.dtype), stands_for)
    indices = mask_to_indices(kept, keep - 1)
    cosines = torch.where(same_token(n, wide), -torch.inf, cosine_matrix(cues.following.mean_keys()))
    near = top_of_rows(take(cosines, indices), min(options.neighbours, n - 1)).to(torch.float32)
    gathered = take(wide, indices) + (near * attention[:, None]) @ wide
    values = torch.cat([gathered, fused], dim=1).to(tokens.dtype)
    return Reduction(*in_raster_order(values, torch.cat([indices, stands_for], dim=1)))


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="arXiv 2403.15388; github.com/42Shawn/LLaVA-PruMerge",
    filter="attention from CLS in the layer after the features, then an even stride",
    correlate="the 32 tokens of most similar keys; all dropped tokens to one",
    compress="attention-weighted sums",
    options=PrumergeOptions,
    cues=frozenset({"following"}),
    without_cls="attention received from all tokens in place of CLS attention",
    published=Published({128: 95.7, 64: 90.8, 32: 84.0}, f"{EIGHT}; its + form"),
)
