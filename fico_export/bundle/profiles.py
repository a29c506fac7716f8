"""What a manifest says of images: the shapes that its vision graphs take, and how a prompt shows an image."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fico_export.bundle import graph_names
from fico_export.bundle.bounds import Count, GraphName, Label, Positive, Record

MAX_AXES = 4
"""Axes of position ids: three are the most that a model has."""

MAX_TILES = 256
MAX_PROFILES = 2**11
"""More than there are grids of at most `MAX_TILES` tiles."""

MAX_TOKENS = 2**20
"""Visual tokens of an image at most: a hundred times those of the largest that a model takes."""

MAX_SIDE = 2**13
"""Pixels of a tile's side."""

Tokens = Annotated[int, Field(strict=True, ge=1, le=MAX_TOKENS)]
Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]
Tiles = Annotated[int, Field(strict=True, ge=1, le=MAX_TILES)]

Grid = tuple[Positive, Positive]


class Profile(Record):
    """What is fixed at export for one shape of image, and the vision graph that was made for it.

    Attributes:
        name: as a user gives it.
        graph: name of its vision graph.
        tile_grid: rows and columns of tiles; `tiles` counts others beside them, such as a thumbnail.
        tiles: T, that the tower sees, each by itself.
        patch_grid: rows and columns of a tile's patches.
        token_grid: rows and columns of the visual tokens that the merger makes of them.
        patch_size: side of a patch, in pixels of what the tower sees.
        frames: F, images that the tower sees as one tile: 1, or the frames of a video that its patches span.
        input_shape: [T·F, 3, H, W] of `pixel_values`; [F, 3, H, W] of a graph that is run tile by tile.
        visual_tokens: N, before any reduction; what stands beside the grids, such as a CLS token, counts.
        handed_over: visual tokens of all tiles that leave the graph.
        shares: part by part, how many tiles are reduced together and how many visual tokens they hand over.
    """

    name: Label
    graph: GraphName
    tile_grid: Grid
    tiles: Tiles
    patch_grid: Grid
    token_grid: Grid
    patch_size: Positive
    frames: Tiles = 1
    input_shape: tuple[Tiles, Literal[3], Side, Side]
    visual_tokens: Tokens
    handed_over: Tokens
    shares: list[tuple[Tiles, Count]] = Field([], max_length=MAX_TILES)

    @property
    def runs(self) -> int:
        """How many times the graph runs for an image: once, or once for each tile."""
        return max(1, self.tiles * self.frames // self.input_shape[0])  # else `consistency` refuses it

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a tile, in pixels."""
        return self.input_shape[2:]

    @property
    def aside(self) -> int:
        """Visual tokens of a tile that are no cell of its grid, such as a CLS token: they come before the cells."""
        rows, columns = self.token_grid
        return self.visual_tokens // self.tiles - rows * columns


VIDEO = "video"
"""Name of the profile of a video, whose tiles are its frames, or as many as a patch spans."""

NEWLINES = ("drop", "rows", "all")
"""Which newline vectors stand for a reduced image: none, one after each row of which a token is kept, or one after each."""


class LayoutRecord(Record):
    """How a prompt shows an image: a rule of `runtime/inputs/layouts/`, with the numbers that it goes by.

    Attributes:
        rule: file name of the rule.
        numbers: as the rule reads them.
        texts: token ids of the texts that stand around visual tokens, by the rule's names for them.
        axes: A, of position ids; 1 for a model whose tokens stand in one row.
    """

    rule: Label = Field(pattern=r"^[a-z][a-z0-9_]*$")
    numbers: dict[Label, Count] = Field({}, max_length=64)
    texts: dict[Label, Annotated[list[Count], Field(max_length=64)]] = Field({}, max_length=512)
    axes: int = Field(1, strict=True, ge=1, le=MAX_AXES)


def square(side: int, grid: tuple[int, int], *, aside: int, patch_size: int) -> Profile:
    """The profile of a model that sees every image as one square, nothing reduced.

    Args:
        side: of the square, in pixels.
        grid: rows and columns of patches.
        aside: visual tokens beside the patches.
        patch_size: side of a patch, in pixels.
    """
    total = grid[0] * grid[1] + aside
    return Profile.model_validate(_square(side, grid, total, total, patch_size))


def with_profile(content: dict[str, Any]) -> dict[str, Any]:
    """What a manifest without profiles and layout says, in today's words: it has one profile, and names it nowhere."""
    reduction = content.get("reduction")
    if not isinstance(reduction, dict) or "profiles" in content:
        return content
    side, grid = content.get("image_size"), reduction.get("grid")
    rest = {key: value for key, value in content.items() if key != "image_size"}
    rest["reduction"] = {key: value for key, value in reduction.items() if key not in ("grid", "kept_aside")}
    patch_size: int | None = None  # refused by its name, as is what it should be made of
    match side, grid:
        case int(), [int(patches), *_] if patches > 0:
            patch_size = side // patches
    counts = reduction.get("visual_tokens"), reduction.get("handed_over")
    return {**rest, "profiles": [_square(side, grid, *counts, patch_size)], "layout": {"rule": "square"}}


def _square(side: Any, grid: Any, visual_tokens: Any, handed_over: Any, patch_size: Any) -> dict[str, Any]:
    return {
        "name": "square",
        "graph": graph_names.VISION,
        "tile_grid": (1, 1),
        "tiles": 1,
        "patch_grid": grid,
        "token_grid": grid,
        "patch_size": patch_size,
        "input_shape": (1, 3, side, side),
        "visual_tokens": visual_tokens,
        "handed_over": handed_over,
    }
