"""What the vision graph asks of a merger."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Merger(Protocol):
    """Tokens of the tower [B, N, C] to tokens of the decoder [B, n, D]; a projector gives as many as it gets.

    Attributes:
        side: patches on a side of the cell that becomes one token.
        planes: layers of the tower, ascending, after each of which `plane` makes something that the decoder adds.
    """

    side: int
    planes: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights and of the tower's."""

    @property
    def outputs(self) -> int:
        """D."""

    def __call__(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, n, D]."""

    def plane(self, number: int, x: Tensor) -> Tensor:
        """What the decoder adds after its layer of that number, of the rows after the tower's in `planes`: [B, N, C] → [B, n, D]."""


@runtime_checkable
class Sensitive(Protocol):
    """A merger that knows what its tokens depend on, for a method that reads it."""

    def sensitivity(self, x: Tensor) -> Tensor:
        """How far a small change of each token [B, N, C] moves what it becomes: [B, N], FP32."""
