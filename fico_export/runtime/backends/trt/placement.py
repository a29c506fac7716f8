"""Where keys and values lie in the device's memory, and the strided copies that put new rows after the old. Pure functions.

Tensors [1, heads, rows, D] of all layers lie in one buffer, one after another, so that the heads of all of them are rows of one
large matrix: new rows of every head of every layer are then placed by one copy, where a copy for each key and value would be 64
calls a token at 7B. Of a batch [B, heads, rows, D], each sequence has a row of its own to go on from, and is placed by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

ALIGNMENT = 256  # of every address that TensorRT is given


@dataclass(frozen=True)
class Copy2D:
    """A strided copy, in bytes from the beginning of two buffers: `height` pieces of `width`, each a pitch after the last."""

    to: int
    to_pitch: int
    source: int
    source_pitch: int
    width: int
    height: int


@dataclass(frozen=True)
class Layout:
    """Tensors [B, heads, rows, D] in one buffer.

    Attributes:
        heads: of each tensor.
        row_bytes: of D numbers.
        rows: of each tensor.
        batch: B.
    """

    heads: int
    row_bytes: int
    rows: tuple[int, ...]
    batch: int = 1

    @cached_property
    def offsets(self) -> list[int]:
        """Where each tensor begins, and after them the size of the whole."""
        return list(accumulate((aligned(self.batch * self.slot_bytes(n)) for n in self.rows), initial=0))

    @property
    def size(self) -> int:
        """Bytes of the buffer."""
        return self.offsets[-1]

    def slot_bytes(self, rows: int) -> int:
        """Bytes that one sequence has of a tensor of so many rows."""
        return self.heads * rows * self.row_bytes

    def slot(self, number: int) -> list[tuple[int, int]]:
        """Where a sequence begins in each tensor, and its bytes there."""
        sizes = [self.slot_bytes(n) for n in self.rows]
        return [(offset + number * size, size) for offset, size in zip(self.offsets, sizes, strict=False)]


def aligned(size: int) -> int:
    """Bytes, rounded up to the alignment of addresses."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def placed(new: Layout, cache: Layout, at: Sequence[int], slot: int = 0) -> list[Copy2D]:
    """Copies that put a sequence's rows of `new` into `cache`, of tensor t from row at[t] on; as few as the layouts allow."""
    sources, places = new.slot(slot), cache.slot(slot)
    copies: list[Copy2D] = []
    row = cache.row_bytes
    for i, (count, first) in enumerate(zip(new.rows, at, strict=True)):
        if not count:
            continue
        copy = Copy2D(
            to=places[i][0] + first * row,
            to_pitch=cache.rows[i] * row,
            source=sources[i][0],
            source_pitch=count * row,
            width=count * row,
            height=cache.heads,
        )
        if copies and (joined := _joined(copies[-1], copy)):
            copies[-1] = joined
        else:
            copies.append(copy)
    return copies


def last_rows(cache: Layout, slots: Sequence[int], count: int) -> list[Copy2D]:
    """Copies that put the last rows of sequences aside, one after another."""
    width, copies = count * cache.row_bytes, list[Copy2D]()
    for slot in slots:
        for (start, _), rows in zip(cache.slot(slot), cache.rows, strict=True):
            pitch = rows * cache.row_bytes
            at = len(copies) * cache.heads * width
            copies.append(Copy2D(at, width, start + pitch - width, pitch, width, cache.heads))
    return copies


def back(copy: Copy2D) -> Copy2D:
    """The copy that undoes it."""
    return Copy2D(copy.source, copy.source_pitch, copy.to, copy.to_pitch, copy.width, copy.height)


def _joined(a: Copy2D, b: Copy2D) -> Copy2D | None:
    """One copy for two, where the second goes on at the pitches of the first."""
    same = (a.to_pitch, a.source_pitch, a.width) == (b.to_pitch, b.source_pitch, b.width)
    follows = b.to == a.to + a.height * a.to_pitch and b.source == a.source + a.height * a.source_pitch
    if not (same and follows):
        return None
    return Copy2D(a.to, a.to_pitch, a.source, a.source_pitch, a.width, a.height + b.height)
