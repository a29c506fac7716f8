"""Policies for the position ids of a reduced image: one object each, by the name that `--positions` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fico_export.runtime.inputs.layouts.base import Block, Index


@dataclass(frozen=True)
class Policy:
    """Which position ids the rows of a reduced image get.

    Attributes:
        name: as users give it.
        place: block of the rows that are left, at the positions that they had → the same, at those that they get.
        span: (span before the reduction, rows that are left) → position ids that the image takes.
    """

    name: str
    place: Callable[[Block], Block]
    span: Callable[[int, int], int]


def _where_they_stood(block: Block) -> Block:
    return block


def _counted(block: Block) -> Block:
    rows = len(block.ids)
    return replace(block, offsets=np.tile(np.arange(rows), (len(block.offsets), 1)), span=rows)


ORIGINAL = Policy("original", _where_they_stood, lambda span, rows: span)
COMPACT = Policy("compact", _counted, lambda span, rows: rows)
POLICIES = {policy.name: policy for policy in (ORIGINAL, COMPACT)}


def as_input(positions: Index) -> Index:
    """[A, S] of one sequence → what a decoder graph takes as `position_ids`: [B, S] for one axis, else [A, B, S]."""
    return positions if len(positions) == 1 else positions[:, None]


def following(positions: Index, count: int) -> Index:
    """[A, count] the position ids of tokens after a text that ends with the last of [A, S]."""
    return positions[:, -1:] + np.arange(1, count + 1)
