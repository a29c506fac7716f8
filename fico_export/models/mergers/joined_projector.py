"""InternVL's merger: the patches of a cell are joined, then a norm and two linear layers make one token of them.

Source: transformers' InternVLMultiModalProjector, before which a pixel shuffle joins the patches of a cell row by row. Letters: B
batch, N patches, n cells, C channels of the tower, D of the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fico_export.models.activations import ACTIVATIONS
from fico_export.models.layers import LayerNorm

_NORM_EPS = 1e-5  # torch's; no config.json has another


class JoinedProjector(nn.Module):
    """Patches of a cell, one after another, to one token.

    Args:
        side: patches on a side of a cell.
        inputs: C.
        outputs: D.
        activation: between the linear layers.
        dtype: of the linear layers.
    """

    planes: tuple[int, ...] = ()

    def __init__(self, side: int, inputs: int, outputs: int, activation: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.side, self.joined = side, side**2 * inputs
        self.layer_norm = LayerNorm(self.joined, _NORM_EPS)
        self.linear_1 = nn.Linear(self.joined, outputs, dtype=dtype)
        self.linear_2 = nn.Linear(outputs, outputs, dtype=dtype)
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
        """[B, N, C] → [B, n, D]."""
        joined = self.layer_norm(x.reshape(len(x), -1, self.joined))
        return self.linear_2(self.activation(self.linear_1(joined)))

    def plane(self, number: int, x: Tensor) -> Tensor:
        """None is made."""
        raise NotImplementedError
