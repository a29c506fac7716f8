"""Random sampling: a fixed random subset, a surprisingly strong baseline (UniPruneBench, arXiv 2511.02650)."""

from __future__ import annotations

import numpy as np
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import Options, Reducer, Reduction, Site
from fico_export.reducers.stages.select import constant_indices, take


class RandomOptions(Options):
    """Which subset."""

    seed: int = Field(0, ge=0, lt=2**32, description="seed of the subset (ours)")


def apply(tokens: Tensor, cues: Cues, keep: int, options: RandomOptions) -> Reduction:
    """The first K of a seeded permutation of the N tokens of [B, N, C], ascending.

    The subset is a constant of the graph: ONNX's random operators repeat on no two backends.
    """
    # RandomState, not default_rng: NumPy freezes only the legacy stream across versions.
    permutation = np.random.RandomState(options.seed).permutation(tokens.shape[1])
    indices = constant_indices(sorted(permutation[:keep].tolist()), tokens)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="baseline",
    filter="a seeded permutation",
    options=RandomOptions,
)
