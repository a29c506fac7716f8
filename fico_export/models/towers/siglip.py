"""The SigLIP vision transformer, up to the layer that feeds the projector: CLIP's layers, and no CLS token.

Source: Zhai et al., arXiv 2303.15343. Parameter names are the checkpoints' own; the norm and the pooling head after the
last layer feed no projector, or belong to the merger where it joins patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fico_export.models.layers import by_cells
from fico_export.models.towers.clip import ClipConfig, ClipEncoder


class SiglipEmbeddings(nn.Module):
    """Patches and their learned positions; what is left of a side after the last whole patch is not seen."""

    def __init__(self, config: ClipConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size, patch = config.hidden_size, config.patch_size
        self.grid, self.side = config.grid, config.side
        self.patch_embedding = nn.Conv2d(3, size, patch, stride=patch, dtype=dtype)
        self.position_embedding = nn.Embedding(config.patches, size, dtype=dtype)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, N, C], cell by cell."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        return by_cells(patches + self.position_embedding.weight, self.grid, self.side)


class SiglipTower(nn.Module):
    """Embeddings and the layers, as in `ClipTower`."""

    cls_tokens = 0

    def __init__(self, config: ClipConfig, dtype: torch.dtype, *, ahead: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = SiglipEmbeddings(config, dtype)
        self.encoder = ClipEncoder(config, dtype, ahead)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, N, C]."""
        embedded: Tensor = self.embeddings(pixel_values)
        return embedded

    def around(self, positions: Tensor | None) -> None:
        """Nothing: the embeddings hold the positions."""
