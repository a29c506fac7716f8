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


def size_weighted(
    targets: Tensor, target_sizes: Tensor, sources: Tensor, source_sizes: Tensor, partner: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean of each target and its sources, every token counting as many times as it holds patches. ToMe, arXiv 2210.09461.

    Args:
        targets: [B, t, C].
        target_sizes: [B, t].
        sources: [B, r, C].
        source_sizes: [B, r].
        partner: [B, r, t], 1 where the source goes to the target, else 0.

    Returns:
        [B, t, C] in the dtype of `targets`, and the new sizes [B, t].
    """
    weights = partner * source_sizes[..., None]
    total = target_sizes + weights.sum(1)
    # Divided first: many large FP16 activations times their sizes stay in range.
    moved = (weights / total[:, None]).transpose(1, 2) @ sources.to(torch.float32)
    merged = (target_sizes / total)[..., None] * targets.to(torch.float32) + moved
    return merged.to(targets.dtype), total
