"""Which shapes an engine takes: its optimisation profiles, and a prompt cut into pieces that fit them. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
Range = tuple[Shape, Shape]  # least and most of each axis
Profile = Mapping[str, Range]  # by the name of an input


def fits(shape: Shape, limits: Range) -> bool:
    """Whether every axis is within its limits."""
    least, most = limits
    return len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int | None:
    """The profile that takes these shapes; of several, the one made for the smallest, whose kernels suit them best.

    Returns:
        Its index; None where no profile takes them.
    """
    able = [
        i
        for i, profile in enumerate(profiles)
        if all(fits(shape, profile[name]) for name, shape in shapes.items())
    ]
    return min(able, key=lambda i: sum(math.prod(profiles[i][name][1]) for name in shapes), default=None)


def largest(profiles: Sequence[Profile], name: str) -> Shape:
    """The largest shape that any profile takes of an input."""
    return max((profile[name][1] for profile in profiles), key=math.prod)


def chunk_sizes(count: int, lengths: Sequence[tuple[int, int]]) -> list[int] | None:
    """Cut `count` tokens into pieces of lengths that an engine takes, the largest first.

    Args:
        count: of tokens.
        lengths: least and most tokens of each profile; one of them takes a single token, for decoding.

    Returns:
        Lengths that add up to `count`; None where what is left at the end is too short.
    """
    sizes: list[int] = []
    while count:
        able = [min(most, count) for least, most in lengths if least <= count]
        if not able:
            return None
        sizes.append(max(able))
        count -= sizes[-1]
    return sizes
