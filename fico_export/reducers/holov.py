"""HoloV: the budget is spread over pieces of the image by attention and variety (NeurIPS 2025).

Source: arXiv 2510.02912; obananas/HoloV@1d2e65e, llava/model/utils.py.
Differs from the reference: a piece's quota beyond its size goes to the most attended tokens left, not to zeros.
Without a CLS token, the attention received from all patches stands in.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import NINE
from fico_export.reducers.base.reducer import Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import same_token
from fico_export.reducers.stages.select import mask_to_indices, rank, take

_VARIETY = 0.09  # weight of the variance against attention, both on one scale
_EPS = 1e-6


class HolovOptions(Options):
    """Hyper-parameters; the default is the released code's."""

    chunks: int = Field(16, ge=1, le=256, description="contiguous pieces of the raster (code 16)")


def apply(tokens: Tensor, cues: Cues, keep: int, options: HolovOptions) -> Reduction:
    """Of each piece of [B, N, C] its quota of most attended tokens."""
    n = tokens.shape[1]
    attention = cues.cls_attention()
    sizes = [n // options.chunks + (i < n % options.chunks) for i in range(min(n, options.chunks))]
    owner = torch.tensor([i for i, size in enumerate(sizes) for _ in range(size)], device=tokens.device)
    member = (owner == torch.arange(len(sizes), device=tokens.device)[:, None]).to(torch.float32)  # [P, N]
    size = torch.tensor(sizes, dtype=torch.float32, device=tokens.device)

    score = _scores(tokens, attention, owner, member, size)
    share = score / (score.sum(-1, keepdim=True) + _EPS)
    quota = (share * keep).floor()
    left = keep - quota.sum(-1, keepdim=True)
    each = (left / len(sizes)).floor()
    quota = torch.minimum(quota + each + (rank(score) < left - each * len(sizes)), size)

    together = owner[:, None] == owner
    place = torch.arange(n, device=tokens.device)
    mine, other = attention[:, :, None], attention[:, None, :]
    ahead = ((other > mine) | ((other == mine) & (place[None] < place[:, None]))) & together
    kept = ahead.to(torch.float32).sum(-1) < quota @ member
    surplus = keep - kept.to(torch.int32).sum(-1, keepdim=True)
    kept = kept | (rank(torch.where(kept, -1.0, attention)) < surplus)
    indices = mask_to_indices(kept, keep)
    return Reduction(take(tokens, indices), indices)


def _scores(tokens: Tensor, attention: Tensor, owner: Tensor, member: Tensor, size: Tensor) -> Tensor:
    """[B, P] mean over each piece of attention and of the variance of its cosines, scaled to the attention."""
    x = tokens.to(torch.float32)
    unit = x / (x.norm(dim=-1, keepdim=True) + _EPS)
    together = owner[:, None] == owner
    cosines = torch.where(together & ~same_token(len(owner), x), unit @ unit.transpose(1, 2), 0.0)
    others = (size - 1).clamp_min(1) @ member
    mean = cosines.sum(-1) / others
    # Over all of the piece, the zero of the diagonal included, as the reference has it.
    variance = torch.where(together, cosines - mean[..., None], 0.0).square().sum(-1) / others
    attended = 1000 * attention
    mean_attended, mean_variance = (x @ member.T / size for x in (attended, variance))
    scale = (mean_attended / (mean_variance + _EPS)) @ member
    score = (attended + _VARIETY * variance * scale) @ member.T / size
    return torch.where(size > 1, score, mean_attended / 1000)


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="arXiv 2510.02912; github.com/obananas/HoloV",
    filter="a quota for each piece of the image, by attention and variance; within it, attention from CLS",
    options=HolovOptions,
    cues=frozenset({"cls_attention"}),
    whole_grid=True,
    without_cls="attention received from all tokens in place of CLS attention",
    published=Published({192: 99.2, 128: 98.0, 64: 95.8}, NINE),
)
