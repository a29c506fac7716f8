"""Filter: how redundant or how important each token is. All scores FP32, [B, n]."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12


def only(scores: Tensor, valid: Tensor | None, other: float = -torch.inf) -> Tensor:
    """Scores [B, n] with `other` where a token is not valid; None for all are."""
    return scores if valid is None else torch.where(valid, scores, other)


def normalize(x: Tensor) -> Tensor:
    """Scale x to unit L2 norm over its last dimension; a zero vector stays zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(_TINY)


def cosine_matrix(x: Tensor) -> Tensor:
    """[B, n, n] cosines between the rows of x [B, n, C]."""
    unit = normalize(x)
    return unit @ unit.transpose(1, 2)


def unit_range(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Scale each row of x [B, n] to 0 … 1, by its valid tokens; a constant row becomes 0."""
    low, high = only(x, valid, torch.inf).amin(-1, keepdim=True), only(x, valid).amax(-1, keepdim=True)
    return (x - low) / (high - low).clamp_min(_TINY)


def same_token(n: int, like: Tensor) -> Tensor:
    """[n, n] bool, true on the diagonal; `torch.eye` would leave a UINT16 constant that TensorRT refuses."""
    place = torch.arange(n, device=like.device)
    return place[:, None] == place


def isolation(cosines: Tensor, valid: Tensor | None = None) -> Tensor:
    """[B, n] distance of each token to its nearest other valid one, from cosines [B, n, n]."""
    # Symmetric to the last bit: each other's nearest tie, and a tie goes to the lower index on every backend.
    both = torch.maximum(cosines, cosines.transpose(1, 2))
    others = torch.where(same_token(cosines.shape[1], cosines), -torch.inf, both)
    return 1 - (others if valid is None else only(others, valid[:, None])).amax(-1)


def mean_of_others(cosines: Tensor, valid: Tensor | None = None) -> Tensor:
    """[B, n] mean cosine of each token to the other valid ones, from cosines [B, n, n]."""
    n = cosines.shape[1]
    others = torch.where(same_token(n, cosines), 0.0, cosines)
    if valid is None:
        return others.sum(-1) / max(1, n - 1)
    count = valid.to(torch.float32).sum(-1, keepdim=True)
    return only(others, valid[:, None], 0.0).sum(-1) / (count - 1).clamp_min(1)


def mean_token(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """[B, 1, C] mean of the valid tokens [B, n, C]."""
    if valid is None:
        return tokens.mean(1, keepdim=True)
    weights = valid.to(torch.float32)[:, None]
    return (weights @ tokens) / weights.sum(-1, keepdim=True)


def distance_from_mean(keys: Tensor) -> Tensor:
    """[B, n] minus the cosine of each row of keys [B, n, D] with their mean: a stand-in for CLS attention."""
    mean = normalize(keys.mean(1, keepdim=True))
    return -(normalize(keys) @ mean.transpose(1, 2)).squeeze(-1)


def local_penalty(
    scores: Tensor, positions: Tensor, grid: tuple[int, int], window: int, coefficient: float
) -> Tensor:
    """Spread the removals: in each window of the grid, the most redundant live token is marked up.

    Only the largest score of each window changes: times the coefficient if positive, divided by it if negative.
    FiCoCo, arXiv 2411.17686. Written as comparisons between live tokens, so that dead cells need no padding.

    Args:
        scores: [B, n].
        positions: [B, n] int64 raster positions of the live tokens, ascending.
        grid: rows, columns.
        window: side of a window, in cells.
        coefficient: > 0.
    """
    cell = torch.tensor(_window_of_each_cell(grid, window), device=scores.device)[positions]
    together = cell[:, :, None] == cell[:, None, :]
    mine, other = scores[:, :, None], scores[:, None, :]
    index = torch.arange(scores.shape[1], device=scores.device)
    ahead = (other > mine) | ((other == mine) & (index[None, :] < index[:, None]))
    beaten = (together & ahead).to(torch.int32).amax(-1) > 0
    marked = torch.where(scores > 0, scores * coefficient, scores / coefficient)
    return torch.where(beaten, scores, marked)


def _window_of_each_cell(grid: tuple[int, int], window: int) -> list[int]:
    rows, columns = grid
    across = -(-columns // window)
    return [(row // window) * across + column // window for row in range(rows) for column in range(columns)]
