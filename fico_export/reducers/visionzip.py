"""VisionZip: the most attended tokens stay, the others gather in a few contextual ones (CVPR 2025).

Source: arXiv 2412.04467; dvlab-research/VisionZip@3151f6d, visionzip/clip_encoder.py.
Differs from the reference: its dominant tokens include CLS, which a LLaVA decoder has never seen; here all are patches.
Without a CLS token, the attention received from all patches stands in.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import EIGHT_IN_TILES, NINE
from fico_export.reducers.base.reducer import InTiles, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.correlate import strongest
from fico_export.reducers.stages.filter import normalize
from fico_export.reducers.stages.select import in_raster_order, mask_to_indices, take, top_mask


class VisionZipOptions(Options):
    """Hyper-parameters; the default is the paper's split."""

    contextual: int | None = Field(
        None,
        ge=1,
        description="contextual tokens out of K; default 5/32 of K (paper 30 of 192, 10 of 64)",
    )


def apply(tokens: Tensor, cues: Cues, keep: int, options: VisionZipOptions) -> Reduction:
    """K − C dominant tokens of [B, N, C], and C that each take in the mean of those most like them."""
    n = tokens.shape[1]
    contextual = min(keep, options.contextual or max(1, keep * 5 // 32))
    dominant = top_mask(cues.cls_attention(), keep - contextual)
    kept, rest = (
        mask_to_indices(dominant, keep - contextual),
        mask_to_indices(~dominant, n - keep + contextual),
    )

    step = max(1, rest.shape[1] // contextual)
    places = [i for i in range(rest.shape[1]) if i % step or i >= step * contextual]
    targets, sources = rest[:, 0 : step * contextual : step], rest[:, places]

    metric = normalize(cues.mean_keys())
    joins = strongest(take(metric, sources) @ take(metric, targets).transpose(1, 2), 1).to(torch.float32)
    gathered = joins.transpose(1, 2) @ take(tokens, sources).to(torch.float32)
    members = joins.sum(1)[..., None].clamp_min(1)
    merged = take(tokens, targets).to(torch.float32) + gathered / members

    values = torch.cat([take(tokens, kept), merged.to(tokens.dtype)], dim=1)
    return Reduction(*in_raster_order(values, torch.cat([kept, targets], dim=1)))


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="arXiv 2412.04467; github.com/dvlab-research/VisionZip",
    filter="attention from CLS",
    correlate="cosine of mean keys to evenly spaced targets, the strongest",
    compress="the mean of a target's members is added to it",
    options=VisionZipOptions,
    cues=frozenset({"cls_attention", "mean_keys"}),
    without_cls="attention received from all tokens in place of CLS attention",
    published=Published({192: 98.1, 128: 97.2, 64: 94.5}, NINE),
    in_tiles=InTiles(
        "--positions compact",
        {640: 99.4, 320: 95.3, 160: 89.3},
        EIGHT_IN_TILES,
        "contextual tokens stand where their targets stood, not after all others; no CLS token is handed over",
    ),
)
