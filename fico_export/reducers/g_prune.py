"""G-Prune: importance flows over a graph of similar tokens; the most important stay (AAAI 2025).

Source: arXiv 2501.02268; jytmelon/G-Prune@762c637, llava/model/llava_arch.py.
Differs from the reference: five vector-matrix products in place of the fifth matrix power (the same numbers);
    the degree is counted on the mask, not on the softmax's non-zeros, which depends on the precision.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import InTiles, Options, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import cosine_matrix, only, same_token
from fico_export.reducers.stages.select import take, top_indices

_CUT = -5000.0  # in place of −∞: exp underflows to exactly 0 in FP32


class GPruneOptions(Options):
    """Hyper-parameters; defaults are the released code's."""

    similarity: float = Field(0.5, ge=-1, le=1, description="least cosine of an edge (code 0.5, paper 0.7)")
    temperature: float = Field(0.03, gt=0, description="softmax temperature of the edges (code 0.03)")
    iterations: int = Field(5, ge=0, le=64, description="propagation steps (code and paper 5)")


def apply(tokens: Tensor, cues: Cues, keep: int, options: GPruneOptions) -> Reduction:
    """Keep the K of [B, N, C] with the highest propagated importance per neighbour."""
    features = tokens.to(torch.float32)
    cosines = cosine_matrix(features)
    # The diagonal always counts: rounding must not cut a token off from itself.
    edges = cosines >= options.similarity
    if cues.valid is not None:
        edges = edges & cues.valid[:, None] & cues.valid[:, :, None]
    edges = edges | same_token(cosines.shape[1], cosines)
    flow = torch.where(edges, cosines / options.temperature, _CUT).softmax(-1)
    importance = features.norm(dim=-1, keepdim=True).transpose(1, 2)
    for _ in range(options.iterations):
        importance = importance @ flow
    degree = edges.to(torch.float32).sum(-1)
    indices = top_indices(only(importance.squeeze(1) / degree, cues.valid), keep)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.PROJECTOR_OUTPUT,
    source="arXiv 2501.02268; github.com/jytmelon/G-Prune",
    filter="L2 norm, propagated over the graph of similar tokens, per neighbour",
    options=GPruneOptions,
    cues=frozenset({"valid"}),
    in_tiles=InTiles(
        "--tiling split --base-keep 288 --unpad --newlines all --keep 1440",
        protocol="its abstract: with 63.6 % fewer FLOPs, VQAv2 loses 0.95 points and TextVQA 2.34",
        differs="K is one number: 1440 is half of all tokens of a square image, and of another the paper keeps half of what shows it",
    ),
)
