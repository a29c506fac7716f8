"""Activations by the names that a config.json gives them.

They are transformers' own, written here: to import those takes as long as all else of a command that reads a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class QuickGelu(nn.Module):
    """x · σ(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """[…] → […]."""
        return x * torch.sigmoid(1.702 * x)


class NewGelu(nn.Module):
    """GELU by tanh, in single operators."""

    def forward(self, x: Tensor) -> Tensor:
        """[…] → […]."""
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class FastGelu(nn.Module):
    """The same with a rounded constant."""

    def forward(self, x: Tensor) -> Tensor:
        """[…] → […]."""
        return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


class SquaredRelu(nn.Module):
    """max(x, 0)²."""

    def forward(self, x: Tensor) -> Tensor:
        """[…] → […]."""
        return torch.square(torch.relu(x))


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_accurate": NewGelu,
    "gelu_fast": FastGelu,
    "gelu_new": NewGelu,
    "gelu_python": nn.GELU,
    "gelu_pytorch_tanh": lambda: nn.GELU("tanh"),
    "leaky_relu": nn.LeakyReLU,
    "linear": nn.Identity,
    "mish": nn.Mish,
    "quick_gelu": QuickGelu,
    "relu": nn.ReLU,
    "relu2": SquaredRelu,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
