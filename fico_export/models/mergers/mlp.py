"""LLaVA-1.5's projector: two linear layers, token by token. Source: Liu et al., arXiv 2310.03744."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fico_export.models.activations import ACTIVATIONS

_NUDGE = 0.01  # on a hidden unit, to take the slope of its activation


class Projector(nn.Module):
    """Two linear layers from the tower's channels to the decoder's."""

    side = 1
    planes: tuple[int, ...] = ()

    def __init__(self, inputs: int, outputs: int, activation: str, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
        self.linear_2 = nn.Linear(outputs, outputs, bias=bias, dtype=dtype)
        self.activation = ACTIVATIONS[activation]()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.linear_1.weight.dtype

    @property
    def outputs(self) -> int:
        """D."""
        return self.linear_2.out_features

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, N, D]."""
        return self.linear_2(self.activation(self.linear_1(x)))

    def plane(self, number: int, x: Tensor) -> Tensor:
        """None is made."""
        raise NotImplementedError

    def sensitivity(self, x: Tensor) -> Tensor:
        """How far a small change of each token [B, N, C] moves its projection: [B, N], FP32.

        The Frobenius norm of the derivative W₂·diag(g′)·W₁, as if what the hidden units add were orthogonal: exactly, it
        takes a product as large as the second layer's. The order of the tokens is nearly that of the exact norm.
        """
        # Transposed as the layers read them: the graph then holds each weight once.
        inwards, outwards = (layer.weight.T.to(torch.float32) for layer in (self.linear_1, self.linear_2))
        unit = inwards.square().sum(0) * outwards.square().sum(1)  # [H]
        hidden = self.linear_1(x).to(torch.float32)
        # A difference, not a formula: it serves every activation.
        slope = (self.activation(hidden + _NUDGE) - self.activation(hidden - _NUDGE)) / (2 * _NUDGE)
        return (slope.square() @ unit[:, None]).squeeze(-1).sqrt()
