"""No reduction: all visual tokens, the baseline of every comparison."""

from __future__ import annotations

from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import Options, Reducer, Reduction, Site
from fico_export.reducers.stages.select import constant_indices


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """Tokens [B, N, C] as they are; keep must be N."""
    return Reduction(tokens, constant_indices(list(range(keep)), tokens))


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_OUTPUT,
    source="–",
    filter="keeps everything",
    options=Options,
)
