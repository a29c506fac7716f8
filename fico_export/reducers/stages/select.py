"""Which tokens: exact counts, ascending order, ties to the lower index on every backend."""

from __future__ import annotations

import torch
from torch import Tensor


def rank(scores: Tensor) -> Tensor:
    """Place of each token by (score descending, index ascending).

    Written as comparisons: `torch.topk` and TensorRT promise no order among equal scores.

    Args:
        scores: [B, N].

    Returns:
        [B, N] int32, 0 for the best.
    """
    index = torch.arange(scores.shape[1], device=scores.device)
    mine, other = scores[:, :, None], scores[:, None, :]
    ahead = (other > mine) | ((other == mine) & (index[None, :] < index[:, None]))
    return ahead.to(torch.int32).sum(-1, dtype=torch.int32)


def top_mask(scores: Tensor, k: int) -> Tensor:
    """[B, N] bool: the k best of [B, N] scores, ties to the lower index."""
    return rank(scores) < k


def top_of_rows(scores: Tensor, k: int) -> Tensor:
    """[B, R, N] bool: the k best of each row of [B, R, N], ties to the lower index; for k far below N."""
    least = scores.topk(k, dim=-1).values[..., -1:]
    above, equal = scores > least, scores == least
    room = k - above.to(torch.float32).sum(-1, keepdim=True)
    return above | (equal & (equal.to(torch.float32).cumsum(-1) <= room))


def mask_to_indices(mask: Tensor, k: int) -> Tensor:
    """Ascending indices of the k set tokens of a mask that has exactly k.

    Args:
        mask: [B, N] bool.
        k: how many are set; a constant of the graph.

    Returns:
        [B, k] int64.
    """
    n = mask.shape[1]
    # Distinct keys that fall with the index: their top-k, in order, is the set indices ascending.
    key = torch.where(mask, torch.arange(n, 0, -1, device=mask.device, dtype=torch.float32), 0.0)
    return key.topk(k, dim=1).indices


def top_indices(scores: Tensor, k: int) -> Tensor:
    """[B, k] int64, ascending: the k best of [B, N] scores, ties to the lower index."""
    return mask_to_indices(top_mask(scores, k), k)


def order(scores: Tensor) -> Tensor:
    """[B, N] int64: the indices of [B, N] scores from the best to the worst, ties to the lower index."""
    return (-rank(scores).to(torch.float32)).topk(scores.shape[1], dim=1).indices


def in_raster_order(tokens: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Sort tokens [B, K, C] and what they stand for, distinct indices [B, K], ascending."""
    places = (-indices.to(torch.float32)).topk(indices.shape[1], dim=1).indices
    return take(tokens, places), indices.gather(1, places)


def constant_indices(indices: list[int], like: Tensor) -> Tensor:
    """[B, K] int64 constant, one row per batch entry of `like` [B, …]."""
    return torch.tensor(indices, dtype=torch.int64, device=like.device).expand(like.shape[0], -1)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of x [B, N, …] at indices [B, K]: [B, K, …]."""
    batch = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[batch, indices]


def first_of_maxima(x: Tensor) -> Tensor:
    """[…, N] bool one-hot of the row maximum, ties to the lower index."""
    return x.argmax(-1, keepdim=True) == torch.arange(x.shape[-1], device=x.device)
