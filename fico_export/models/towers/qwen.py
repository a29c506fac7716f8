"""What the vision transformers of Qwen2.5-VL and Qwen3-VL share: images of any grid, rotary positions in two dimensions.

Rows stand cell by cell: the side × side patches that the merger joins come one after another, cells in raster order.
Source: Bai et al., arXiv 2502.13923; transformers' Qwen2_5_VLVisionAttention and Qwen3VLVisionModel.

Letters: B batch, N patches, n cells, m live rows, p patches of a cell, C channels, H heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fico_export.models.layers import attend, join_heads

_THETA = 10_000.0  # of the rotary frequencies; no config.json of these models has another


@dataclass(frozen=True)
class QwenVisionConfig:
    """Shape of a tower, for images of one grid of patches.

    Attributes:
        hidden_size: C.
        intermediate_size: hidden units of a layer's MLP.
        layers: all of them feed the merger.
        heads: H.
        activation: of the MLP.
        grid: rows and columns of patches.
        patch_size: side of a patch, in pixels.
        frames: that a patch of a video spans; a still image stands for that many equal ones.
        moving: whether it is shown so many frames, and not a still image.
        side: patches on a side of a cell.
        table: positions on a side of the learned table; 0 where there is none.
        window: cells on a side of a window; 0 where every layer attends to all.
        full: layers that attend to all, of a tower with windows.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    activation: str
    grid: tuple[int, int]
    patch_size: int
    frames: int
    side: int
    table: int = 0
    window: int = 0
    full: frozenset[int] = frozenset()
    moving: bool = False

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.grid[0] // self.side, self.grid[1] // self.side

    def windowed(self, layer: int) -> bool:
        """Whether a layer attends within windows alone."""
        return self.window > 0 and layer not in self.full


class Windows(NamedTuple):
    """Equal windows: rows and columns of them, cells on a side of each."""

    rows: int
    columns: int
    side: int

    def cut(self, x: Tensor) -> Tensor:
        """[B, m, …] cell by cell → [B · windows, m / windows, …] window by window."""
        cell = x.shape[1] // (self.rows * self.columns * self.side**2)
        parts = x.reshape(-1, self.rows, self.side, self.columns, self.side * cell, x.shape[-1])
        return parts.transpose(2, 3).reshape(-1, self.side**2 * cell, x.shape[-1])

    def joined(self, x: Tensor) -> Tensor:
        """Back: [B · windows, rows of a window, C] → [B, m, C]."""
        cell = x.shape[1] // self.side**2
        parts = x.reshape(-1, self.rows, self.columns, self.side, self.side * cell, x.shape[-1])
        return parts.transpose(2, 3).reshape(-1, self.rows * self.columns * x.shape[1], x.shape[-1])


class Seen(NamedTuple):
    """What the rows of a layer see of each other.

    Attributes:
        cos: [B or 1, m, D/2] of the rotary angles, FP32; of windows [windows, rows of one, D/2].
        sin: likewise.
        windows: that the rows are cut into; None where all attend to all, or by `allowed`.
        allowed: [B or 1, 1, m, m] bool, which rows a row attends to; None for all.
    """

    cos: Tensor
    sin: Tensor
    windows: Windows | None = None
    allowed: Tensor | None = None


class Around(NamedTuple):
    """What layers that attend to all see, and those that attend within windows."""

    full: Seen
    windowed: Seen


class PatchEmbedding(nn.Module):
    """Patches of `frames` frames, or of a still image, which stands for as many equal ones: the kernel is summed over them."""

    def __init__(self, config: QwenVisionConfig, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        kernel = (config.frames, config.patch_size, config.patch_size)
        self.patch_embedding = nn.Conv3d(3, config.hidden_size, kernel, stride=kernel, bias=bias, dtype=dtype)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, N, C]; of frames [B · frames, 3, H, W]."""
        side, size = self.config.side, self.config.patch_size
        down, across = self.config.cells
        parts = pixel_values.reshape(-1, 3, down, side, size, across, side, size)
        patches = parts.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(
            -1, down * across * side * side, 3 * size * size
        )
        # Its sum is taken in the graph, where every runtime folds it: the checkpoint's own tensor stays linked.
        kernel = self.patch_embedding.weight
        if (
            self.config.moving
        ):  # frame by frame: with all frames in one, patches would have nine axes, and TensorRT takes eight
            patches = patches.unflatten(0, (-1, self.config.frames)).transpose(1, 2).flatten(2)
            return F.linear(patches, kernel.transpose(1, 2).flatten(1), self.patch_embedding.bias)
        summed = kernel.to(torch.float32).sum(2).flatten(1).to(pixel_values.dtype)
        return F.linear(patches, summed, self.patch_embedding.bias)


class QwenAttention(nn.Module):
    """Self-attention that also hands out its rotated queries and keys, for the reducers that score by them."""

    def __init__(self, config: QwenVisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.heads
        self.qkv = nn.Linear(size, 3 * size, dtype=dtype)
        self.proj = nn.Linear(size, size, dtype=dtype)

    def forward(self, x: Tensor, sizes: Tensor | None, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """[B, m, C] → attended rows, queries and keys, each [B, m, C], heads joined, queries not scaled."""
        # A row that holds s patches is attended to as s rows would be.
        bias = None if sizes is None else sizes.log()[:, None, None]
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, m, D]
        turned, values = rotate(parts[:2], seen), parts[2]
        queries, keys = turned[0], turned[1]
        attended = attend(queries, keys, values, seen.allowed, bias)
        return self.proj(join_heads(attended)), join_heads(queries), join_heads(keys)


class QwenLayer(nn.Module):
    """A pre-norm transformer layer in two halves; its norms and its MLP are the model's."""

    def __init__(
        self,
        config: QwenVisionConfig,
        number: int,
        norms: tuple[nn.Module, nn.Module],
        mlp: nn.Module,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.windowed = config.windowed(number)
        self.norm1, self.norm2 = norms
        self.attn = QwenAttention(config, dtype)
        self.mlp = mlp

    def attend(self, x: Tensor, sizes: Tensor | None, around: Around) -> tuple[Tensor, Tensor, Tensor]:
        """First half with its residual: [B, m, C] → rows, queries, keys."""
        rows, queries, keys = self(x, sizes, around)
        return rows, queries, keys

    def feed_forward(self, x: Tensor) -> Tensor:
        """Second half with its residual."""
        (rows,) = self(x)
        return rows

    def forward(
        self, x: Tensor, sizes: Tensor | None = None, around: Around | None = None
    ) -> tuple[Tensor, ...]:
        """The first half where it is told what is around, else the second.

        Both go through here, so that their nodes carry the layer's name: equal layers are copied by it.
        """
        if around is None:
            return (x + self.mlp(self.norm2(x)),)
        seen = around.windowed if self.windowed else around.full
        normed = self.norm1(x)
        if seen.windows is None:
            attended, queries, keys = self.attn(normed, sizes, seen)
        else:
            found = self.attn(seen.windows.cut(normed), None, seen)
            attended, queries, keys = (seen.windows.joined(rows) for rows in found)
        return x + attended, queries, keys


class QwenEncoder(nn.Module):
    """Holds the layers under the name that those of every tower have."""

    def __init__(self, layers: list[QwenLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class QwenTower(nn.Module):
    """Embeddings and layers; a model's own tower makes both.

    Args:
        config: its shape.
        embeddings: as of `embed`.
        layers: all of them.
    """

    cls_tokens = 0

    def __init__(self, config: QwenVisionConfig, embeddings: nn.Module, layers: list[QwenLayer]) -> None:
        super().__init__()
        self.config = config
        self.embeddings = embeddings
        self.encoder = QwenEncoder(layers)
        # Numbers of the graph, as transformers computes them, to the bit.
        half = config.hidden_size // config.heads // 2
        exponents = torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half
        self._frequencies: list[float] = (1.0 / _THETA**exponents).tolist()

    def embed(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W], or as many frames of each, → [B, N, C], cell by cell."""
        embedded: Tensor = self.embeddings(pixel_values)
        return embedded

    def around(self, positions: Tensor | None) -> Around:
        """Rotary angles of the live cells' patches, and which windows they are in."""
        config, (rows, columns) = self.config, self.config.cells
        device = next(self.parameters()).device
        places = torch.arange(rows * columns, device=device)[None] if positions is None else positions
        # Of a cell by its raster position; tables, as a division of whole numbers is more to a runtime than a look-up.
        row, column = (
            torch.tensor(table, device=device)[places]
            for table in zip(*((i, j) for i in range(rows) for j in range(columns)), strict=True)
        )
        cos, sin = self._angles(row, column)
        full = Seen(cos, sin)
        if not config.window:
            return Around(full, full)
        down, across = -(-rows // config.window), -(-columns // config.window)
        if positions is None and not rows % config.window and not columns % config.window:
            windows = Windows(down, across, config.window)
            return Around(full, Seen(windows.cut(cos), windows.cut(sin), windows))
        ids = [i // config.window * across + j // config.window for i in range(rows) for j in range(columns)]
        window = self._of_patches(torch.tensor(ids, device=device)[places])
        return Around(full, Seen(cos, sin, allowed=(window[:, :, None] == window[:, None])[:, None]))

    def _of_patches(self, of_cells: Tensor) -> Tensor:
        """[B, n] → [B, m], the same for every patch of a cell."""
        return of_cells[..., None].expand(*of_cells.shape, self.config.side**2).flatten(1)

    def _angles(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, m, D/2] of cells at rows and columns [B, n]: half of the frequencies turn by each."""
        side = self.config.side
        frequencies = torch.tensor(self._frequencies, device=row.device)
        within = [divmod(patch, side) for patch in range(side * side)]
        angles = []
        for place, offsets in zip((row, column), zip(*within, strict=True), strict=True):
            at = (place * side)[..., None] + torch.tensor(offsets, device=row.device)
            angles.append(at.flatten(1).to(torch.float32)[..., None] * frequencies)
        turned = torch.cat(angles, dim=-1)
        return turned.cos(), turned.sin()


def rotate(x: Tensor, seen: Seen) -> Tensor:
    """Rotary position embedding in FP32, half-split layout: x [..., B, H, m, D]."""
    cos, sin = seen.cos[:, None], seen.sin[:, None]
    if seen.windows is not None and x.shape[-4] != len(
        cos
    ):  # the windows of one image after those of another
        cos, sin = (part.repeat(x.shape[-4] // len(part), 1, 1, 1) for part in (cos, sin))
    first, second = x.to(torch.float32).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
