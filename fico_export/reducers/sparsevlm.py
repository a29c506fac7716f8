"""SparseVLM: words that match the image rate its tokens at a few depths; some of the rest are merged (ICML 2025).

Source: arXiv 2410.04417; Gumpest/SparseVLMs@26a5f48, llava/model/language_model/score.py.
Differs from the reference: a budget K, approached by equal ratios, in which the merged tokens count; tokens keep their position
    ids, as in the reference's second version; `--set recycle=0` merges nothing, as there.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import EIGHT_IN_TILES, NINE
from fico_export.reducers.base.reducer import Depth, InTiles, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.base.schedule import LayersField, by_equal_ratios
from fico_export.reducers.stages.cluster import density_peaks
from fico_export.reducers.stages.select import in_raster_order, mask_to_indices, rank, take


class SparsevlmOptions(Options):
    """Hyper-parameters."""

    layers: str | None = LayersField(
        "layers after whose attention tokens are dropped; default 2,6,15 of 32, or in proportion (paper)"
    )
    recycle: float = Field(
        0.3, ge=0, le=1, description="share of the dropped that is merged, ten into one (paper 0.3)"
    )


def apply(tokens: Tensor, cues: Cues, keep: int, options: SparsevlmOptions) -> Reduction:
    """The best of [B, N, C] by the raters' attention, and clusters of the next best."""
    n = tokens.shape[1]
    place = rank(_rating(cues))
    clusters = min(keep - 1, round(options.recycle * (n - keep) / 10))
    kept = mask_to_indices(place < keep - clusters, keep - clusters)
    if clusters == 0:
        return Reduction(take(tokens, kept), kept)
    q = max(clusters, round(options.recycle * (n - (keep - clusters))))
    recycled = mask_to_indices((place >= keep - clusters) & (place < keep - clusters + q), q)
    members = take(tokens, recycled).to(torch.float32)
    centres, joins = density_peaks(cues.own(members), clusters)
    weights = joins / joins.sum(1, keepdim=True)
    merged = (weights.transpose(1, 2) @ members).to(tokens.dtype)
    return Reduction(
        *in_raster_order(
            torch.cat([take(tokens, kept), merged], dim=1), torch.cat([kept, take(recycled, centres)], dim=1)
        )
    )


def _rating(cues: Cues) -> Tensor:
    """[B, n] attention from the words that match the image more than the mean word does."""
    prompt = cues.prompt
    assert prompt is not None
    match = prompt.visual_embeds.to(torch.float32) @ prompt.embeds.to(torch.float32).transpose(1, 2)
    shares = match.masked_fill(~prompt.mask[:, None], float("-inf")).softmax(-1).mean(1)
    mean = shares.sum(-1, keepdim=True) / prompt.mask.sum(-1, keepdim=True)
    raters = (prompt.mask & (shares >= mean * (1 - 1e-6))).to(
        torch.float32
    )  # equal words rate all, or none would
    attention = cues.text_attention()
    return (raters[:, None] @ attention)[:, 0] / raters.sum(-1, keepdim=True)


def schedule(visual_tokens: int, keep: int, depth: Depth, options: SparsevlmOptions) -> dict[int, int]:
    """N to K by equal ratios.

    Raises:
        ConfigError: layers that this decoder does not have, or not ascending.
    """
    layers = [depth.total * i // 32 for i in (2, 6, 15)]
    return by_equal_ratios(visual_tokens, keep, options.layers, layers, depth.used - 1)


REDUCER = Reducer(
    apply=apply,
    site=Site.DECODER_LAYER,
    source="arXiv 2410.04417; github.com/Gumpest/SparseVLMs",
    filter="attention from the words that match the image best, at several depths",
    correlate="the nearest of some density peaks among the best that were dropped",
    compress="mean",
    options=SparsevlmOptions,
    cues=frozenset({"text_attention", "prompt"}),
    schedule=schedule,
    published=Published({192: 96.1, 128: 93.8, 64: 87.3}, f"{NINE}; K is the mean over layers"),
    in_tiles=InTiles("", {640: 98.3, 320: 93.2}, EIGHT_IN_TILES),
)
