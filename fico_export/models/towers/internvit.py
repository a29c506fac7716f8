"""InternVL's vision transformer, InternViT: a CLS token, a learned factor on each channel of each branch, no norm at the end.

Source: Chen et al., arXiv 2312.14238; transformers' InternVLVisionModel. Parameter names are the checkpoints' own.
Letters: B batch, N patches, m live rows (a CLS token, then patches, cell by cell), C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fico_export.models.layers import LayerNorm, RmsNorm, attend, by_cells, join_heads, split_heads
from fico_export.models.towers.clip import ClipConfig, ClipMlp

_NORMS: dict[str, Callable[[int, float], nn.Module]] = {"layer_norm": LayerNorm, "rms_norm": RmsNorm}
NORMS = tuple(_NORMS)
_QK_EPS = 1e-6  # of the norms of queries and keys; no config.json has another


@dataclass(frozen=True, kw_only=True)
class InternVitConfig(ClipConfig):
    """Shape of the tower; the norm of its layers, and whether queries and keys have one and a bias."""

    norm: str
    qk_norm: bool
    qkv_bias: bool


class _PatchEmbeddings(nn.Module):
    def __init__(self, config: InternVitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        patch = config.patch_size
        self.projection = nn.Conv2d(3, config.hidden_size, patch, stride=patch, dtype=dtype)


class InternVitEmbeddings(nn.Module):
    """Patches, a CLS token in front, and their learned positions."""

    def __init__(self, config: InternVitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.grid, self.side = config.grid, config.side
        self.cls_token = nn.Parameter(torch.empty(1, 1, size, dtype=dtype))
        self.patch_embeddings = _PatchEmbeddings(config, dtype)
        self.position_embeddings = nn.Parameter(torch.empty(1, config.patches + 1, size, dtype=dtype))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, 1 + N, C]."""
        patches = self.patch_embeddings.projection(pixel_values).flatten(2).transpose(1, 2)
        patches = by_cells(patches + self.position_embeddings[:, 1:], self.grid, self.side)
        cls = (self.cls_token + self.position_embeddings[:, :1]).expand(len(patches), -1, -1)
        return torch.cat([cls, patches], dim=1)


class InternVitAttention(nn.Module):
    """Self-attention that also hands out its queries and keys, for the reducers that score by them."""

    def __init__(self, config: InternVitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.heads
        self.q_proj = nn.Linear(size, size, bias=config.qkv_bias, dtype=dtype)
        self.k_proj = nn.Linear(size, size, bias=config.qkv_bias, dtype=dtype)
        self.v_proj = nn.Linear(size, size, bias=config.qkv_bias, dtype=dtype)
        self.projection_layer = nn.Linear(size, size, dtype=dtype)
        self.q_norm: nn.Module = RmsNorm(size, _QK_EPS) if config.qk_norm else nn.Identity()
        self.k_norm: nn.Module = RmsNorm(size, _QK_EPS) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """[B, m, C] → attended tokens, queries and keys, each [B, m, C], heads joined, queries not scaled."""
        q, k, v = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x)), self.v_proj(x)
        # A token that holds s patches is attended to as s tokens would be.
        bias = None if sizes is None else sizes.log()[:, None, None]
        q_heads, k_heads, v_heads = (split_heads(t, self.heads) for t in (q, k, v))
        attended = attend(q_heads, k_heads, v_heads, bias=bias)
        return self.projection_layer(join_heads(attended)), q, k


class InternVitLayer(nn.Module):
    """A pre-norm transformer layer in two halves, each scaled channel by channel before it is added."""

    def __init__(self, config: InternVitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size, norm = config.hidden_size, _NORMS[config.norm]
        self.layernorm_before, self.layernorm_after = norm(size, config.norm_eps), norm(size, config.norm_eps)
        self.attention = InternVitAttention(config, dtype)
        self.mlp = ClipMlp(config, dtype)
        self.lambda_1 = nn.Parameter(torch.empty(size, dtype=dtype))
        self.lambda_2 = nn.Parameter(torch.empty(size, dtype=dtype))

    def attend(
        self, x: Tensor, sizes: Tensor | None = None, around: None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """First half with its residual: [B, m, C], patches per token [B, m] → tokens, queries, keys."""
        attended, queries, keys = self.attention(self.layernorm_before(x), sizes)
        return x + self.lambda_1 * attended, queries, keys

    def feed_forward(self, x: Tensor) -> Tensor:
        """Second half with its residual."""
        return x + self.lambda_2 * self.mlp(self.layernorm_after(x))


class InternVitEncoder(nn.Module):
    """Holds the layers."""

    def __init__(self, config: InternVitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList([InternVitLayer(config, dtype) for _ in range(config.layers)])


class InternVit(nn.Module):
    """Embeddings and the layers; the loop over them belongs to the vision encoder."""

    cls_tokens = 1

    def __init__(self, config: InternVitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.embeddings = InternVitEmbeddings(config, dtype)
        self.encoder = InternVitEncoder(config, dtype)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, 1 + N, C]."""
        embedded: Tensor = self.embeddings(pixel_values)
        return embedded

    def around(self, positions: Tensor | None) -> None:
        """Nothing: the embeddings hold the positions."""
