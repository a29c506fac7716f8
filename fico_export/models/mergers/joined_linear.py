"""SmolVLM's merger: the tower's last norm, then the patches of a cell, joined to one token by one linear layer.

Source: transformers' Idefics3Connector, whose pixel shuffle joins the patches of a cell row by row. Letters: B batch, N patches,
n cells, C channels of the tower, D of the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fico_export.models.layers import LayerNorm


class JoinedLinear(nn.Module):
    """Patches of a cell, one after another, to one token.

    Args:
        side: patches on a side of a cell.
        inputs: C.
        outputs: D.
        norm_eps: of the norm of each patch.
        dtype: of the linear layer.
    """

    planes: tuple[int, ...] = ()

    def __init__(self, side: int, inputs: int, outputs: int, norm_eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.side, self.joined = side, side**2 * inputs
        self.norm = LayerNorm(inputs, norm_eps)
        self.linear = nn.Linear(self.joined, outputs, bias=False, dtype=dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.linear.weight.dtype

    @property
    def outputs(self) -> int:
        """D."""
        return self.linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, n, D]."""
        return self.linear(self.norm(x).reshape(len(x), -1, self.joined))

    def plane(self, number: int, x: Tensor) -> Tensor:
        """None is made."""
        raise NotImplementedError
