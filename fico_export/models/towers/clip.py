"""The CLIP vision transformer, up to the layer that feeds the projector.

Source: Radford et al., arXiv 2103.00020. Parameter names are the checkpoints' own.
Letters: B batch, N patches, m live rows (patches, and a CLS token first where the tower has one), C channels, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fico_export.models.activations import ACTIVATIONS
from fico_export.models.layers import LayerNorm, attend, join_heads, split_heads


@dataclass(frozen=True)
class StackConfig:
    """Shape of a stack of layers, of an image's tower or a text's."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    activation: str
    norm_eps: float


@dataclass(frozen=True)
class ClipConfig(StackConfig):
    """Shape of a CLIP or SigLIP tower; `layers` counts only those that feed the projector, of `total_layers`.

    With `side` more than 1, rows stand cell by cell, of side × side patches.
    """

    total_layers: int
    image_size: int
    patch_size: int
    side: int = 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of whole patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]


class ClipEmbeddings(nn.Module):
    """Patches, a CLS token in front, and their learned positions."""

    def __init__(self, config: ClipConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(size, dtype=dtype))
        self.patch_embedding = nn.Conv2d(3, size, patch, stride=patch, bias=False, dtype=dtype)
        self.position_embedding = nn.Embedding(config.patches + 1, size, dtype=dtype)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, 1 + N, C]."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight


class ClipAttention(nn.Module):
    """Self-attention that also hands out its queries and keys, for the reducers that score by them."""

    def __init__(self, config: StackConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.heads
        self.q_proj = nn.Linear(size, size, dtype=dtype)
        self.k_proj = nn.Linear(size, size, dtype=dtype)
        self.v_proj = nn.Linear(size, size, dtype=dtype)
        self.out_proj = nn.Linear(size, size, dtype=dtype)

    def forward(
        self, x: Tensor, sizes: Tensor | None, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, m, C] → attended tokens, queries and keys, each [B, m, C], heads joined, queries not scaled."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        # A token that holds s patches is attended to as s tokens would be.
        bias = None if sizes is None else sizes.log()[:, None, None]
        q_heads, k_heads, v_heads = (split_heads(t, self.heads) for t in (q, k, v))
        attended = attend(q_heads, k_heads, v_heads, allowed, bias)
        return self.out_proj(join_heads(attended)), q, k


class ClipMlp(nn.Module):
    """Two linear layers with the checkpoint's activation."""

    def __init__(self, config: StackConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, dtype=dtype)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, dtype=dtype)
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """[B, m, C] → [B, m, C]."""
        return self.fc2(self.activation(self.fc1(x)))


class ClipLayer(nn.Module):
    """A pre-norm transformer layer in two halves, so that a reducer can act between them."""

    def __init__(self, config: StackConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = ClipAttention(config, dtype)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = ClipMlp(config, dtype)

    def attend(
        self, x: Tensor, sizes: Tensor | None = None, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """First half with its residual: [B, m, C], patches per token [B, m], mask [m, m] → tokens, queries, keys."""
        attended, queries, keys = self.self_attn(self.layer_norm1(x), sizes, allowed)
        return x + attended, queries, keys

    def feed_forward(self, x: Tensor) -> Tensor:
        """Second half with its residual."""
        return x + self.mlp(self.layer_norm2(x))


class ClipScores(nn.Module):
    """Of a layer, what it would attend by: its queries and keys, for a reducer that looks one layer ahead."""

    def __init__(self, config: StackConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.layer_norm1 = LayerNorm(size, config.norm_eps)
        self.self_attn = nn.ModuleDict(
            {name: nn.Linear(size, size, dtype=dtype) for name in ("q_proj", "k_proj")}
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, m, C] → queries and keys, each [B, m, C]."""
        normed = self.layer_norm1(x)
        return self.self_attn["q_proj"](normed), self.self_attn["k_proj"](normed)


class ClipEncoder(nn.Module):
    """Holds the layers under the checkpoints' name `encoder.layers`; the last may be a `ClipScores`."""

    def __init__(self, config: StackConfig, dtype: torch.dtype, ahead: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [ClipLayer(config, dtype) for _ in range(config.layers)]
        self.layers = nn.ModuleList([*layers, ClipScores(config, dtype)] if ahead else layers)


class ClipTower(nn.Module):
    """Embeddings, the first norm, and the layers; the loop over them belongs to the vision encoder.

    With `ahead`, the queries and keys of the layer after those that feed the projector are there too.
    """

    cls_tokens = 1

    def __init__(self, config: ClipConfig, dtype: torch.dtype, *, ahead: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = ClipEmbeddings(config, dtype)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.norm_eps)  # the checkpoints' own spelling
        self.encoder = ClipEncoder(config, dtype, ahead)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, 1 + N, C]."""
        return self.pre_layrnorm(self.embeddings(pixel_values))

    def around(self, positions: Tensor | None) -> None:
        """Nothing: the embeddings hold the positions."""
