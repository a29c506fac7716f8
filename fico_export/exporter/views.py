"""Checkpoints seen through a change: scaled for quantisation, or as they are after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fico_export.models.weights import Weights

Change = Callable[[str, torch.Tensor], torch.Tensor]


class View(Weights):
    """The tensors of a checkpoint, each passed through a function when it is read.

    Args:
        checkpoint: whose.
        change: (name, tensor as stored) → tensor of the same shape.
    """

    def __init__(self, checkpoint: Weights, change: Change) -> None:
        self.folder, self.tensors, self.files = checkpoint.folder, checkpoint.tensors, checkpoint.files
        self._checkpoint, self._change = checkpoint, change

    def load(self, name: str) -> torch.Tensor:
        """One tensor, changed."""
        return self._change(name, self._checkpoint.load(name))

    def stream(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors one after another, changed."""
        for name, tensor in self._checkpoint.stream(names):
            yield name, self._change(name, tensor)
