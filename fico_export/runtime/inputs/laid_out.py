"""A prompt laid out token by token, and what the decoder takes of it.

Letters as in `layouts/base.py`; S tokens of a prompt, images expanded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fico_export.runtime.backends.base import Array
from fico_export.runtime.inputs.images import ImageFeatures
from fico_export.runtime.inputs.layouts.base import NEWLINE, NONE, Index


class Rows(NamedTuple):
    """New tokens as the decoder takes them, as of a `Step`."""

    embeds: Array
    positions: Index
    planes: Array | None = None

    def part(self, start: int, end: int | None = None) -> Rows:
        """Some of them."""
        cut = slice(start, end)
        planes = None if self.planes is None else self.planes[:, cut]
        return Rows(self.embeds[cut], self.positions[:, cut], planes)


@dataclass(frozen=True)
class LaidOut:
    """A prompt laid out token by token.

    Attributes:
        keys: what each token is: its id, or (image, which of its tokens). Equal keys have equal cache entries.
        ids: [S] token ids; `NONE` where a visual token stands.
        visual: [S] which row of all images' features stands there; `NONE` for a text token, `NEWLINE` for the newline vector.
        positions: [A, S] position ids.
        next_position: of the first token of the answer, on every axis.
    """

    keys: list[Hashable]
    ids: Index
    visual: Index
    positions: Index
    next_position: int

    @property
    def visual_rows(self) -> Index:
        """[N] the rows where visual tokens stand, ascending; newline vectors are none."""
        return np.flatnonzero(self.visual >= 0)

    def rows(
        self,
        embed: Callable[[list[int]], npt.NDArray[Any]],
        images: Sequence[ImageFeatures],
        start: int = 0,
    ) -> Rows:
        """The prompt from token `start` on as the decoder takes it, images in their places.

        Args:
            embed: token ids → their embeddings [S, C], to be written into.
            images: those that it was laid out with.
            start: how many of its first tokens are left out.
        """
        visual = self.visual[start:]
        embeds = embed(np.where(visual == NONE, self.ids[start:], 0).tolist())
        newlines = visual == NEWLINE
        if newlines.any():
            embeds[newlines] = next(image.newline for image in images if image.newline is not None)
        at, planes = np.flatnonzero(visual >= 0), None
        if at.size:
            embeds[at] = np.concatenate([image.features for image in images])[visual[at]]
            added = [image.planes for image in images if image.planes is not None]
            if added:
                planes = np.zeros((len(added[0]), *embeds.shape), embeds.dtype)
                planes[:, at] = np.concatenate(added, axis=1)[:, visual[at]]
        return Rows(embeds, self.positions[:, start:], planes)
