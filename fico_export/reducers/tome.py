"""ToMe: in every layer of the tower the most similar pairs of tokens become one (ICLR 2023).

Source: arXiv 2210.09461; facebookresearch/ToMe@af95e4b, tome/merge.py.
Differs from the reference: tokens are put back into raster order after each layer, which changes the next layer's pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fico_export.errors import ConfigError
from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import NINE
from fico_export.reducers.base.reducer import Depth, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.compress import size_weighted
from fico_export.reducers.stages.correlate import strongest
from fico_export.reducers.stages.filter import normalize
from fico_export.reducers.stages.select import in_raster_order, mask_to_indices, take, top_mask


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """Split [B, N, C] alternately in two, and merge the N − K of the first half most like one of the second into it."""
    n, start = tokens.shape[1], int(cues.has_cls)  # CLS is row 0 and takes the first place of the first half
    drop = n - keep
    first, second = list(range(start, n, 2)), list(range(1 - start, n, 2))
    sizes = tokens.new_ones(tokens.shape[:2], dtype=torch.float32) if cues.sizes is None else cues.sizes

    metric = normalize(cues.mean_keys())
    likeness = metric[:, first] @ metric[:, second].transpose(1, 2)
    merged = top_mask(likeness.amax(-1), drop)
    partner = strongest(likeness, 1) & merged[..., None]

    kept = mask_to_indices(~merged, len(first) - drop)
    place = torch.tensor(first, device=tokens.device)
    targets, total = size_weighted(
        tokens[:, second], sizes[:, second], tokens[:, first], sizes[:, first], partner.to(torch.float32)
    )
    rows = torch.tensor(second, device=tokens.device).expand(tokens.shape[0], -1)
    values = torch.cat([take(tokens[:, first], kept), targets], dim=1)
    counts = torch.cat([take(sizes[:, first], kept), total], dim=1)
    indices = torch.cat([place[kept], rows], dim=1)
    sorted_values, sorted_indices = in_raster_order(values, indices)
    sorted_counts, _ = in_raster_order(counts, indices)
    return Reduction(sorted_values, sorted_indices, sorted_counts)


def schedule(visual_tokens: int, keep: int, depth: Depth, options: Options) -> dict[int, int]:
    """Drop N − K tokens evenly over all layers; the first layers drop one more if need be.

    Raises:
        ConfigError: some layer would have to drop more than half of its tokens.
    """
    base, extra = divmod(visual_tokens - keep, depth.used)
    left, result = visual_tokens, {}
    for layer in range(depth.used):
        dropped = base + (layer < extra)
        if dropped > left // 2:
            raise ConfigError(
                f"layer {layer} would have to merge {dropped} of its {left} tokens, and ToMe can merge half of them",
                fix="give a larger --keep, or another --method",
            )
        left -= dropped
        if dropped:
            result[layer] = left
    return result


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_LAYER,
    source="arXiv 2210.09461; github.com/facebookresearch/ToMe",
    filter="likeness of mean keys to a token of the other half",
    correlate="that token",
    compress="size-weighted mean; sizes weigh in the attention that follows",
    options=Options,
    cues=frozenset({"mean_keys", "sizes"}),
    schedule=schedule,
    published=Published({128: 80.4, 64: 70.1}, NINE),
)
