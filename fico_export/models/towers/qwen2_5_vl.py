"""Qwen2.5-VL's vision transformer: most layers attend within windows; RMS norms and gated MLPs.

Source: Bai et al., arXiv 2502.13923; transformers' Qwen2_5_VisionTransformerPretrainedModel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fico_export.models.activations import ACTIVATIONS
from fico_export.models.layers import RmsNorm
from fico_export.models.towers.qwen import PatchEmbedding, QwenLayer, QwenTower, QwenVisionConfig

NORM_EPS = 1e-6  # of every norm; no config.json has another


class GatedMlp(nn.Module):
    """Gated MLP with biases."""

    def __init__(self, config: QwenVisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        sizes = (config.hidden_size, config.intermediate_size)
        self.gate_proj = nn.Linear(*sizes, dtype=dtype)
        self.up_proj = nn.Linear(*sizes, dtype=dtype)
        self.down_proj = nn.Linear(*sizes[::-1], dtype=dtype)
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """[B, m, C] → [B, m, C]."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


def tower(config: QwenVisionConfig, dtype: torch.dtype) -> QwenTower:
    """The tower of a shape, parameters uninitialised."""

    def norm() -> RmsNorm:
        return RmsNorm(config.hidden_size, NORM_EPS)

    layers = [
        QwenLayer(config, number, (norm(), norm()), GatedMlp(config, dtype), dtype)
        for number in range(config.layers)
    ]
    return QwenTower(config, PatchEmbedding(config, bias=False, dtype=dtype), layers)
