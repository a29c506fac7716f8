"""Qwen3-VL's vision transformer: every layer attends to all; a learned table of positions is resampled to the image's grid.

Source: transformers' Qwen3VLVisionModel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fico_export.models.activations import ACTIVATIONS
from fico_export.models.layers import LayerNorm
from fico_export.models.towers.qwen import PatchEmbedding, QwenLayer, QwenTower, QwenVisionConfig

NORM_EPS = 1e-6  # of every norm; no config.json has another


class Embeddings(PatchEmbedding):
    """Patches, and their positions: the table, resampled bilinearly so that its corners are the image's."""

    def __init__(self, config: QwenVisionConfig, dtype: torch.dtype) -> None:
        super().__init__(config, bias=True, dtype=dtype)
        self.position_embedding = nn.Embedding(config.table**2, config.hidden_size, dtype=dtype)
        self._down, self._across = (weights(length, config.table) for length in config.grid)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """As of `PatchEmbedding`."""
        return super().forward(pixel_values) + self.positions().to(pixel_values.dtype)

    def positions(self) -> Tensor:
        """[N, C] of the patches, cell by cell, FP32: one matrix product a side, which every runtime folds."""
        config, table = self.config, self.position_embedding.weight
        (rows, columns), side, channels = config.grid, config.side, config.hidden_size
        down, across = (torch.tensor(part, device=table.device) for part in (self._down, self._across))
        fewer_rows = down @ table.to(torch.float32).reshape(config.table, config.table * channels)
        grid = across @ fewer_rows.reshape(rows, config.table, channels)
        cells = grid.reshape(rows // side, side, columns // side, side, channels).transpose(1, 2)
        return cells.reshape(rows * columns, channels)


def weights(length: int, table: int) -> list[list[float]]:
    """[length, table] of a linear interpolation along a side, first on first and last on last."""
    found = [[0.0] * table for _ in range(length)]
    for i, row in enumerate(found):
        low, rest = divmod(i * (table - 1), max(length - 1, 1))
        part = rest / max(length - 1, 1)
        row[low] += 1 - part
        row[min(low + 1, table - 1)] += part
    return found


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, config: QwenVisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size, dtype=dtype)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size, dtype=dtype)
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """[B, m, C] → [B, m, C]."""
        return self.linear_fc2(self.activation(self.linear_fc1(x)))


def tower(config: QwenVisionConfig, dtype: torch.dtype) -> QwenTower:
    """The tower of a shape, parameters uninitialised."""

    def norm() -> LayerNorm:
        return LayerNorm(config.hidden_size, NORM_EPS)

    layers = [
        QwenLayer(config, number, (norm(), norm()), Mlp(config, dtype), dtype)
        for number in range(config.layers)
    ]
    return QwenTower(config, Embeddings(config, dtype), layers)
