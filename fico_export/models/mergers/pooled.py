"""LLaVA-OneVision's merger of a video's frames: the projector, then bilinear interpolation to half the grid, rounded up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fico_export.models.mergers.mlp import Projector


class Pooled(Projector):
    """A projector whose tokens are interpolated to a smaller grid, frame by frame; the weights are the projector's.

    Args:
        grid: rows and columns of a frame's patches.
        pooled: rows and columns of the visual tokens that they become.
        projector: arguments as of `Projector`.
    """

    def __init__(self, grid: tuple[int, int], pooled: tuple[int, int], *projector: Any) -> None:
        super().__init__(*projector)
        self.grid, self.pooled = grid, pooled
        # Numbers of the graph, not weights of the checkpoint: what torch's own interpolation makes of single tokens.
        self._down, self._across = (_weights(a, b) for a, b in zip(grid, pooled, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, n, D]."""
        projected = super().forward(x)
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
