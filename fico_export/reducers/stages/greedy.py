"""Greedy selection: K times the best token, the scores renewed after each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fico_export.reducers.stages.select import mask_to_indices

State = tuple[Tensor, ...]


def greedy(
    scores: Tensor, keep: int, step: Callable[[Tensor, State], tuple[Tensor, State]], state: State
) -> Tensor:
    """Pick K times the best token that is not taken yet; ties go to the lower index.

    In a graph this is one `Scan` with K turns, not K copies of its body: as fast in ONNX Runtime, and TensorRT compiles it
    in a fraction of the time. K copies are 9 nodes a token.

    Args:
        scores: [B, N] of the first choice, FP32.
        keep: K.
        step: (best [B] int64, state) → scores [B, N] of the next choice, and the state after this one.
        state: tensors that `step` carries on, of constant shapes.

    Returns:
        [B, K] int64, ascending.
    """
    place = torch.arange(scores.shape[1], device=scores.device)

    def turn(carry: State, _: Tensor) -> tuple[State, Tensor]:
        taken, scores, *rest = carry
        best = torch.where(taken, -torch.inf, scores).argmax(-1)
        scores, after = step(best, tuple(rest))
        # Clones: what a scan carries must not alias its inputs; the exporter drops them.
        return (taken | (place == best[:, None]), scores.clone(), *(t.clone() for t in after)), best[
            :1
        ].clone()

    carry: State = (torch.zeros_like(scores, dtype=torch.bool), scores, *(t.clone() for t in state))
    if torch.compiler.is_exporting():
        from torch._higher_order_ops.scan import scan

        carry, _ = scan(turn, carry, torch.arange(keep, device=scores.device))
    else:
        for _ in range(keep):
            carry, _ = turn(carry, place)
    return mask_to_indices(carry[0], keep)


def row(matrix: Tensor, index: Tensor) -> Tensor:
    """Row index [B] of each matrix [B, N, M]: [B, M]."""
    return matrix[torch.arange(matrix.shape[0], device=matrix.device), index]
