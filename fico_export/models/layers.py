"""Layers that state their precision in the graph: FP32 islands inside an FP16 model.

A graph is strongly typed: what is computed in FP32 is cast to FP32, and no builder flag can change it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """Layer norm with FP32 weights and arithmetic; the result has the dtype of the input [..., C]."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size, eps=eps, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., C]."""
        normed = F.layer_norm(x.to(torch.float32), self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.to(x.dtype)


class RmsNorm(nn.Module):
    """Root-mean-square norm with FP32 weights and arithmetic; written in plain operators for opset 18."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=torch.float32))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., C]."""
        wide = x.to(torch.float32)
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention in the primitive form that every backend fuses or runs.

    Args:
        queries: [B, H, S, D].
        keys: [B, H, T, D].
        values: [B, H, T, D].
        allowed: bool, broadcastable to [B, H, S, T]; None attends everywhere.
        bias: FP32, broadcastable to [B, H, S, T], added to the scaled scores.

    Returns:
        [B, H, S, D].
    """
    scores = ((queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)).to(torch.float32)
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        # Finite: a row with nothing allowed (left padding) must not turn into NaN.
        scores = torch.where(allowed, scores, -1e9)
    return scores.softmax(-1).to(values.dtype) @ values


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, H·D] → [B, H, S, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, S, D] → [B, S, H·D]."""
    return x.transpose(1, 2).flatten(2)


def by_cells(patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Patches [B, N, C] in raster order → cell by cell, those of a cell of side × side one after another.

    Args:
        patches: of a grid whose sides `side` divides.
        grid: rows and columns of patches.
        side: patches on a side of a cell.
    """
    if side == 1:
        return patches
    parts = patches.unflatten(1, (grid[0] // side, side, grid[1] // side, side))
    return parts.transpose(2, 3).flatten(1, 4)
