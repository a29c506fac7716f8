"""LLaVA-OneVision's merger of a video's frames: the projector, then bilinear interpolation to half the grid, rounded up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fico_export.models.mergers.mlp import Projector


class Pooled(nn.Module):
    """A projector whose tokens are interpolated to a smaller grid, frame by frame.

    Its parameters have the projector's names: both are one set of weights.
    """

    def __init__(self, projector: Projector, grid: tuple[int, int], pooled: tuple[int, int]) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = projector.linear_1, projector.linear_2
        self.activation = projector.activation
        self.grid, self.pooled = grid, pooled
        # Numbers of the graph, not weights of the checkpoint: what torch's own interpolation makes of single tokens.
        self._down, self._across = (_weights(a, b) for a, b in zip(grid, pooled, strict=True))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.linear_1.weight.dtype

    @property
    def outputs(self) -> int:
        """D."""
        return self.linear_2.out_features

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, n, D]."""
        projected = self.linear_2(self.activation(self.linear_1(x)))
        (rows, columns), (high, wide) = self.grid, self.pooled
        down, across = (
            torch.tensor(weights, dtype=x.dtype, device=x.device) for weights in (self._down, self._across)
        )
        fewer_rows = down @ projected.reshape(-1, rows, columns * self.outputs)
        fewer = across @ fewer_rows.reshape(-1, high, columns, self.outputs)
        return fewer.reshape(-1, high * wide, self.outputs)


def _weights(inputs: int, outputs: int) -> list[list[float]]:
    """[outputs, inputs] of bilinear interpolation along an axis."""
    single = torch.eye(inputs, device="cpu")[None]
    found: list[list[float]] = F.interpolate(single, outputs, mode="linear")[0].T.tolist()
    return found
