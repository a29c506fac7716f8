"""Greedy selection: K times the best token, the scores renewed after each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fico_export.reducers.stages.select import mask_to_indices

State = tuple[Tensor, ...]
_ROUNDING = 1e-5  # in FP32, up to 4e-6 is left of a unit vector that is wholly explained


def greedy(
    scores: Tensor,
    keep: int,
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    state: State,
    valid: Tensor | None = None,
) -> Tensor:
    """Pick K times the best token that is not taken yet; ties go to the lower index.

    In a graph this is one `Scan` with K turns, not K copies of its body, 9 to 27 nodes each: about as fast in ONNX Runtime,
    and TensorRT compiles it in a few hundredths of the time (docs/latency.md).

    Args:
        scores: [B, N] of the first choice, FP32.
        keep: K.
        step: (best [B] int64, state) → scores [B, N] of the next choice, and the state after this one.
        state: tensors that `step` carries on, of constant shapes.
        valid: [B, N] bool, which tokens may be picked; None for all.

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

    barred = torch.zeros_like(scores, dtype=torch.bool) if valid is None else ~valid
    carry: State = (barred, scores.clone(), *(t.clone() for t in state))
    if torch.compiler.is_exporting():
        from torch._higher_order_ops.scan import scan

        carry, _ = scan(turn, carry, torch.arange(keep, device=scores.device))
    else:
        for _ in range(keep):
            carry, _ = turn(carry, place)
    return mask_to_indices(carry[0] if valid is None else carry[0] & valid, keep)


def largest_volume(
    cosines: Tensor, keep: int, weights: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """Pick K times the token that those kept so far explain least: greedy MAP of a determinantal point process.

    Its kernel is `weights[i] · cosines[i, j] · weights[j]`, up to the square root of the weights; the incremental Cholesky
    runs on the cosines alone, whose scale is known.

    Args:
        cosines: [B, N, N] between the tokens.
        keep: K.
        weights: [B, N] > 0 by which the unexplained part of each token counts; None for all alike.
        valid: as of `greedy`.

    Returns:
        [B, K] int64, ascending.
    """
    place = torch.arange(keep, device=cosines.device)

    def scores(left: Tensor) -> Tensor:
        return left if weights is None else weights * left

    def step(best: Tensor, state: State) -> tuple[Tensor, State]:
        left, factor, turn = state  # [B, N] unexplained, [B, K, N] rows so far, [1] which row is next
        known = (row(factor.transpose(1, 2), best)[:, None] @ factor).squeeze(1)
        rest = left.gather(1, best[:, None])
        new = torch.where(rest > 0, (row(cosines, best) - known) * rest.clamp_min(_ROUNDING).rsqrt(), 0.0)
        factor = torch.where((place == turn)[:, None], new[:, None], factor)
        left = left - new.square()
        # Once K exceeds the tokens' rank, only rounding is left: then the lower index counts, on every backend.
        left = torch.where(left > _ROUNDING, left, 0.0)
        return scores(left), (left, factor, turn + 1)

    whole = torch.ones_like(cosines[:, 0])
    factor = torch.zeros(cosines.shape[0], keep, cosines.shape[1], device=cosines.device)
    turn = torch.zeros(1, dtype=torch.int64, device=cosines.device)
    return greedy(scores(whole), keep, step, (whole, factor, turn), valid)


def largest_cover(worth: Tensor, keep: int, weights: Tensor | None = None) -> Tensor:
    """Pick K times the token that adds most to what is covered; a thing is covered as far as the best token kept covers it.

    Args:
        worth: [B, N, M], how far each token covers each of M things; below 0 is not at all.
        keep: K.
        weights: [B, N] ≥ 0 by which each token's gain counts; None for all alike.

    Returns:
        [B, K] int64, ascending.
    """

    def gain(covered: Tensor) -> Tensor:
        added = (worth - covered[:, None]).relu().sum(-1)
        return added if weights is None else weights * added

    def step(best: Tensor, state: State) -> tuple[Tensor, State]:
        covered = torch.maximum(state[0], row(worth, best))
        return gain(covered), (covered,)

    nothing = torch.zeros_like(worth[:, 0])
    return greedy(gain(nothing), keep, step, (nothing,))


def row(matrix: Tensor, index: Tensor) -> Tensor:
    """Row index [B] of each matrix [B, N, M]: [B, M]."""
    return matrix[torch.arange(matrix.shape[0], device=matrix.device), index]
