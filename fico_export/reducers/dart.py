"""DART at the embeddings: the tokens least similar to a few pivots (EMNLP 2025).

Source: arXiv 2502.11494; the embedding-level form of NVIDIA's TensorRT-Edge-LLM, from its documentation.
Differs from the reference: pivots come from the image alone, not from the prompt; no layer of the decoder runs first.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import EIGHT_IN_TILES, NINE
from fico_export.reducers.base.reducer import InTiles, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import cosine_matrix, only
from fico_export.reducers.stages.select import take, top_indices, top_mask


class DartOptions(Options):
    """Hyper-parameters; the default is the paper's."""

    pivots: int = Field(8, ge=1, le=64, description="tokens that the others are compared with (paper 8)")


def apply(tokens: Tensor, cues: Cues, keep: int, options: DartOptions) -> Reduction:
    """The pivots among [B, N, C], and the tokens of lowest mean cosine to them."""
    features = tokens.to(torch.float32)
    pivot = top_mask(only(features.abs().sum(-1), cues.valid), min(options.pivots, keep))
    likeness = (cosine_matrix(features) * pivot[:, None]).sum(-1)
    indices = top_indices(only(torch.where(pivot, torch.inf, -likeness), cues.valid), keep)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.PROJECTOR_OUTPUT,
    source="arXiv 2502.11494; TensorRT-Edge-LLM's embedding-level form",
    filter="unlikeness to pivots of largest norm",
    options=DartOptions,
    cues=frozenset({"valid"}),
    published=Published({192: 98.5, 128: 97.5, 64: 93.9}, f"{NINE}; of the form inside the decoder"),
    in_tiles=InTiles(
        "", {640: 98.0, 320: 95.3, 160: 90.9}, f"{EIGHT_IN_TILES}; of the form inside the decoder"
    ),
)
