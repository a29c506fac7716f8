"""What the vision graph asks of a tower.

Letters: B batch, N patches, m live rows (patches, and CLS tokens first where the tower has some), C channels.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class TowerConfig(Protocol):
    """Shape of a tower."""

    @property
    def hidden_size(self) -> int:
        """C."""

    @property
    def intermediate_size(self) -> int:
        """Hidden units of a layer's MLP."""

    @property
    def layers(self) -> int:
        """Layers that feed the merger; the tower may hold one more, whose scores a reducer reads."""

    @property
    def heads(self) -> int:
        """Attention heads."""


class TowerLayer(Protocol):
    """A layer in two halves, so that a reducer can act between them."""

    def attend(self, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """First half with its residual: rows [B, m, C], patches per row [B, m] → rows, queries and keys, each [B, m, C]."""

    def feed_forward(self, x: Tensor) -> Tensor:
        """Second half with its residual: [B, m, C] → [B, m, C]."""


class Tower(Protocol):
    """Embeddings and layers.

    Attributes:
        cls_tokens: rows before the patches.
        encoder: holds the `layers`; one after the last of `config.layers` gives queries and keys alone.
    """

    cls_tokens: int
    encoder: Any

    @property
    def config(self) -> TowerConfig:
        """Shape of the tower."""

    def embed(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, m, C]."""
