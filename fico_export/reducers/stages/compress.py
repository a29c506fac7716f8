"""Compress: merge tokens into others. FP32 inside; merging is a MatMul with a weight matrix, never a scatter."""

from __future__ import annotations

import torch
from torch import Tensor


def self_preserving(targets: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
    """X_T[j] ← (X_T[j] + Σᵢ w_ij X_S[i]) / (1 + Σᵢ w_ij). FiCoCo, arXiv 2411.17686.

    Args:
        targets: [B, t, C].
        sources: [B, r, C].
        weights: [B, r, t] ≥ 0.

    Returns:
        [B, t, C], dtype of `targets`.
    """
    # FP32: a hundred FP16 activations in the thousands would overflow before the division.
    moved = weights.transpose(1, 2) @ sources.to(torch.float32)
    merged = (targets.to(torch.float32) + moved) / (1 + weights.sum(1))[..., None]
    return merged.to(targets.dtype)
