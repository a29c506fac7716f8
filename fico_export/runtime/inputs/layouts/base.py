"""What a layout rule says of an image: what the tower is shown of it, and what stands for it in the prompt.

Letters: A axes of position ids, N visual tokens of an image, K of them kept, R rows of the prompt that stand for the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.bundle.profiles import LayoutRecord, Profile

Index = npt.NDArray[np.int64]
Size = tuple[int, int]
"""Width and height of an upright image, in pixels."""


class Clip(tuple[int, int]):
    """The size of a video's frames, where the prompt says of each tile when it was: a text before each.

    Attributes:
        texts: token ids of these texts, tile by tile.
    """

    texts: tuple[tuple[int, ...], ...]

    def __new__(cls, size: Size, texts: Sequence[Sequence[int]]) -> Clip:
        """A size, and what is said of it."""
        made = super().__new__(cls, size)
        made.texts = tuple(map(tuple, texts))
        return made


Box = tuple[float, float, float, float]
"""(left, top, right, bottom), in pixels of an upright image."""


Kind = Literal["alone", "several", "video"]
"""What is shown: the one image of a prompt, one of several, which some models show otherwise, or a video."""


class Tile(NamedTuple):
    """A part of an image that the tower is shown: where it lies, and how large it is when the image processor gets it."""

    box: Box
    size: Size


NONE = -1
NEWLINE = -2
"""In the place of a visual token, where the model's newline vector stands."""

Features = npt.NDArray[Any]
"""[n, D]"""

Resampled = Callable[[Features], Features]


@dataclass(frozen=True)
class Block:
    """What stands for an image in the prompt: R rows, each a text token or a visual token.

    Attributes:
        ids: [R] token id of a text token; `NONE` where a visual token or a newline vector stands.
        visual: [R] which visual token stands there, in the order of the vision graph's output; `NONE` for a text token, `NEWLINE`
            for the newline vector.
        offsets: [A, R] position ids, counted from the one where the image begins.
        span: position ids that the image takes: what follows it goes on so far after its beginning, on every axis.
    """

    ids: Index
    visual: Index
    offsets: Index
    span: int

    @classmethod
    def of_cells(cls, visual: Index, offsets: Index, span: int) -> Block:
        """A block of visual tokens alone."""
        return cls(np.full(len(visual), NONE), visual, offsets, span)

    @classmethod
    def of_text(cls, ids: Sequence[int], axes: int) -> Block:
        """Text tokens: one position id each, the same on every axis."""
        counted = np.arange(len(ids))
        return cls(np.asarray(ids, np.int64), np.full(len(ids), NONE), np.tile(counted, (axes, 1)), len(ids))

    @classmethod
    def joined(cls, parts: Sequence[Block]) -> Block:
        """Blocks one after another; `visual` is as they have it."""
        starts = np.cumsum([0, *(part.span for part in parts)])
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.visual for part in parts]),
            np.concatenate(
                [part.offsets + start for part, start in zip(parts, starts, strict=False)], axis=1
            ),
            int(starts[-1]),
        )

    @property
    def runs(self) -> list[int | range]:
        """The rows in words: the id of each text token, and the rows of each run of visual tokens and newline vectors."""
        found: list[int | range] = []
        for visual, rows in groupby(range(len(self.ids)), key=lambda row: self.visual[row] != NONE):
            which = list(rows)
            found += [range(which[0], which[-1] + 1)] if visual else self.ids[which].tolist()
        return found

    def kept(self, index: Index, stays: npt.NDArray[np.bool_] | None = None) -> Block:
        """The block of a reduced image.

        Args:
            index: [K] which of its visual tokens are left, ascending.
            stays: [R] which of the other rows are left; all by default.

        Returns:
            What is left, where it stood; `visual` counts the K.
        """
        others = self.visual < 0
        rows = np.isin(self.visual, index) | (others if stays is None else stays)
        nth = np.where(others, self.visual, np.searchsorted(index, self.visual))
        return replace(self, ids=self.ids[rows], visual=nth[rows], offsets=self.offsets[:, rows])


def _all_stay(profile: Profile, whole: Block, index: Index, record: LayoutRecord) -> npt.NDArray[np.bool_]:
    return whole.visual < 0


def _all_beside(whole: Block, count: int, record: LayoutRecord) -> int:
    return int((whole.visual < 0).sum())


def _all_valid(profile: Profile, size: Size) -> npt.NDArray[np.bool_]:
    return np.ones(profile.visual_tokens, np.bool_)


def _as_they_are(profile: Profile, size: Size, record: LayoutRecord) -> None:
    return None


def _all_alike(profiles: Sequence[Profile], record: LayoutRecord, kind: Kind) -> Sequence[Profile]:
    return [] if kind == "video" else profiles


def _each_at_its_beginning(total: int, count: int) -> list[int]:
    return [i * total // count for i in range(count)]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A layout rule; all of it runs on the host, without torch. `record` is that of the manifest.

    Attributes:
        problem: (profile, record) → what the rule cannot do with them, empty where it can.
        choose: (profiles, size, record) → the one that an image of this size takes.
        among: (profiles, record, kind) → those that what is shown can take; none of a kind that is not shown.
        cut: (image, profile, record, filter to resize by) → what the tower is shown, T images in the order of the graph's input, each
            then prepared as the checkpoint's image processor does.
        tiles: (size, profile) → what these T images are of one of that size.
        block: (profile, size, record) → all visual tokens of the image that the prompt shows.
        stays: (profile, whole block, kept index, record) → [R] which rows without a visual token stand for a reduced image.
        beside: (whole block, K, record) → how many these are at most.
        valid: (profile, size) → [N] which visual tokens show something of the image, and not padding.
        resampled: (profile, size, record) → what makes of all N features those of the whole block; None where they are those.
        sample: (frames of a video, how many are taken) → which; by default the first of each of so many equal parts.
        time: seconds of the frames of a video's tile → the text that stands before it; None where none does.
    """

    problem: Callable[[Profile, LayoutRecord], str]
    choose: Callable[[Sequence[Profile], Size, LayoutRecord], Profile]
    cut: Callable[[Image.Image, Profile, LayoutRecord, Image.Resampling], list[Image.Image]]
    tiles: Callable[[Size, Profile], list[Tile]]
    block: Callable[[Profile, Size, LayoutRecord], Block]
    stays: Callable[[Profile, Block, Index, LayoutRecord], npt.NDArray[np.bool_]] = _all_stay
    beside: Callable[[Block, int, LayoutRecord], int] = _all_beside
    valid: Callable[[Profile, Size], npt.NDArray[np.bool_]] = _all_valid
    resampled: Callable[[Profile, Size, LayoutRecord], Resampled | None] = _as_they_are
    among: Callable[[Sequence[Profile], LayoutRecord, Kind], Sequence[Profile]] = _all_alike
    sample: Callable[[int, int], list[int]] = _each_at_its_beginning
    time: Callable[[Sequence[float]], str] | None = None


def first(profiles: Sequence[Profile], size: Size, record: LayoutRecord) -> Profile:
    """The only one, or the one that a bundle is for."""
    return profiles[0]


def cut_up(image: Image.Image, profile: Profile) -> list[Image.Image]:
    """The tiles of an image that is as large as the profile's grid, row by row."""
    (rows, columns), (height, width) = profile.tile_grid, profile.size
    corners = [(column * width, row * height) for row in range(rows) for column in range(columns)]
    return [image.crop((left, top, left + width, top + height)) for left, top in corners]


def equal_parts(size: Size, profile: Profile) -> list[Tile]:
    """What the tiles of the profile's grid show of an image that is stretched to it, row by row."""
    (rows, columns), (height, width) = profile.tile_grid, profile.size
    across, down = size[0] / columns, size[1] / rows
    return [
        Tile((column * across, row * down, (column + 1) * across, (row + 1) * down), (width, height))
        for row in range(rows)
        for column in range(columns)
    ]


def unknown(record: LayoutRecord, numbers: AbstractSet[str] = frozenset(), texts: bool = False) -> str:
    """The first number or text of a record that its rule does not read, as a problem; empty where there is none.

    Args:
        record: The manifest's layout.
        numbers: Names of the numbers that the rule reads.
        texts: Whether the rule reads texts.
    """
    if others := record.numbers.keys() - numbers:
        return f"there is no number {min(others)}"
    return f"there is no text {min(record.texts)}" if record.texts and not texts else ""
