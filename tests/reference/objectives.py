"""What a set of kept tokens is worth by its method's own measure, float64 NumPy.

A greedy choice that falls otherwise changes all that follow, so where rounding decides, two sets compare by these and not
by what they share. Cosines and distances (1 − cosine) are of the tokens that the method itself compares: `after` the
projector or `before` it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from reference.attention_select import unit_rows
from reference.reducers import Floats, Indices


@dataclass(frozen=True)
class Picture:
    """All tokens of one image: before [N, C] and after the projector [N, D], and its sensitivity to them [N]."""

    before: Floats
    after: Floats
    sensitivity: Floats


def coverage(tokens: Floats, kept: Floats) -> float:
    """Mean over all tokens [N, C] of the cosine to the kept one [K, C] most like it (section 3.8, saliency aside)."""
    return float((unit_rows(tokens) @ unit_rows(kept).T).max(axis=1).mean())


def volume(tokens: Floats, indices: Indices) -> float:
    """Log-determinant of the kept tokens' cosines (section 3.9)."""
    unit = unit_rows(tokens[indices])
    return float(np.linalg.slogdet(unit @ unit.T)[1])


def nearest(tokens: Floats, indices: Indices) -> Floats:
    """Distance of each kept token to the nearest other kept one, [K]."""
    unit = unit_rows(tokens[indices])
    distance = 1.0 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    return distance.min(axis=1)


def _scaled(x: Floats) -> Floats:
    return (x - x.min()) / (x.max() - x.min())


def _cenprune(picture: Picture, indices: Indices) -> float:
    """Section 3.7: mean of distinctiveness times distance after centring."""
    unit = unit_rows(picture.after)
    distinct = _scaled(-(unit @ unit.T).sum(axis=1))
    return float((distinct[indices] * nearest(picture.after - picture.after.mean(axis=0), indices)).mean())


def _zooprune(picture: Picture, indices: Indices) -> float:
    """Section 3.13: mean of sensitivity times distance."""
    return float((_scaled(picture.sensitivity)[indices] * nearest(picture.after, indices)).mean())


OBJECTIVES: dict[str, Callable[[Picture, Indices], float]] = {
    "cenprune": _cenprune,
    "divprune": lambda picture, indices: float(nearest(picture.after, indices).min()),
    "dpp": lambda picture, indices: volume(picture.after, indices),
    "scope": lambda picture, indices: coverage(picture.before, picture.before[indices]),
    "vispruner": lambda picture, indices: coverage(picture.before, picture.before[indices]),
    "zooprune": _zooprune,
}
