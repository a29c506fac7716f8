"""What the vision graph asks of a tower.

Letters: B batch, N patches, n cells, m live rows (patches, and CLS tokens first where the tower has some), C channels.
A cell is what becomes one visual token: a patch, or where the merger joins several, those, one row after another.
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

    def attend(
        self, x: Tensor, sizes: Tensor | None = None, around: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """First half with its residual: rows [B, m, C] → rows, queries and keys, each [B, m, C], rotated where the tower rotates.

        Args:
            x: the rows.
            sizes: patches per row [B, m], of a method that weighs rows by it.
            around: what `Tower.around` says of the rows.
        """

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
        """[B, 3, H, W] → [B, m, C], the patches of a cell one after another."""

    def around(self, positions: Tensor | None) -> Any:
        """What the layers must know of where the rows are: None in a tower whose embeddings say it.

        Args:
            positions: raster positions of the live cells [B, n]; None where all are there.
        """
