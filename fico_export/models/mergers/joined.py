"""Qwen-VL's merger: the patches of a cell are joined to one token, then two linear layers; planes of earlier layers likewise.

Source: transformers' Qwen2_5_VLPatchMerger and Qwen3VLVisionPatchMerger. Letters: B batch, N patches, n cells of p patches each,
C channels of the tower, D of the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fico_export.models.layers import LayerNorm


class JoinedMlp(nn.Module):
    """Patches of a cell, one after another, to one token.

    Args:
        norm: of each patch, or of what they are joined to.
        patches: p.
        inputs: C.
        outputs: D.
        dtype: of the linear layers.
    """

    def __init__(
        self,
        norm: nn.Module,
        patches: int,
        inputs: int,
        outputs: int,
        dtype: torch.dtype,
        *,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.norm, self.norm_first, self.joined = norm, norm_first, patches * inputs
        self.linear_fc1 = nn.Linear(self.joined, self.joined, dtype=dtype)
        self.linear_fc2 = nn.Linear(self.joined, outputs, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, n, D]."""
        x = self.norm(x) if self.norm_first else x
        x = x.reshape(len(x), -1, self.joined)
        x = x if self.norm_first else self.norm(x)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class Joined(JoinedMlp):
    """The merger of the last layer, and one for each earlier layer whose features the decoder adds to its own.

    Args:
        norm: of each patch.
        side: patches on a side of a cell.
        inputs: C.
        outputs: D.
        dtype: of the linear layers.
        planes: layers after which a plane is made, ascending.
        norm_eps: of the norms of planes.
    """

    def __init__(
        self,
        norm: nn.Module,
        side: int,
        inputs: int,
        outputs: int,
        dtype: torch.dtype,
        planes: tuple[int, ...] = (),
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(norm, side**2, inputs, outputs, dtype, norm_first=True)
        self.side, self.planes = side, planes
        if planes:
            self.deepstack_merger_list = nn.ModuleList(
                JoinedMlp(LayerNorm(self.joined, norm_eps), side**2, inputs, outputs, dtype, norm_first=False)
                for _ in planes
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.linear_fc1.weight.dtype

    @property
    def outputs(self) -> int:
        """D."""
        return self.linear_fc2.out_features

    def plane(self, number: int, x: Tensor) -> Tensor:
        """What the decoder adds after its layer of that number, of the rows after the tower's in `planes`: [B, N, C] → [B, n, D]."""
        plane: Tensor = self.deepstack_merger_list[number](x)
        return plane
