"""DPP: the K tokens that span the largest volume, found greedily; CDPruner without its text (NeurIPS 2025).

Source: arXiv 2506.10967; Theia-4869/CDPruner@9541616, llava/model/llava_arch.py.
Differs from the reference: no relevance to a prompt, so that one graph serves any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import Options, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import cosine_matrix
from fico_export.reducers.stages.greedy import largest_volume
from fico_export.reducers.stages.select import take


def apply(tokens: Tensor, cues: Cues, keep: int, options: Options) -> Reduction:
    """K times the one of [B, N, C] that those kept so far explain least."""
    indices = largest_volume(cosine_matrix(tokens.to(torch.float32)), keep, valid=cues.valid)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.PROJECTOR_OUTPUT,
    source="arXiv 2506.10967; github.com/Theia-4869/CDPruner",
    filter="what the kept tokens leave unexplained (determinantal point process), greedily",
    options=Options,
    cues=frozenset({"valid"}),
)
