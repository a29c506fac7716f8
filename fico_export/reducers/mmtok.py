"""MMTok: the K tokens that best cover both the prompt's words and the image itself (ICLR 2026).

Source: arXiv 2508.18264; no code read.
Differs from the reference: the text is the user's prompt without the words of the chat template around it.
The prompt's token embeddings are a second input of the vision graph, so that one graph serves any prompt.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import ELEVEN
from fico_export.reducers.base.reducer import Published, Reducer, Reduction, Site, TextOptions
from fico_export.reducers.stages.filter import cosine_matrix, normalize
from fico_export.reducers.stages.greedy import largest_cover
from fico_export.reducers.stages.select import take


class MmtokOptions(TextOptions):
    """Hyper-parameters; defaults are the paper's."""

    text_temperature: float = Field(
        0.02, gt=0, le=10, description="of the softmax from a word to the tokens (paper 0.02)"
    )
    vision_temperature: float = Field(
        0.2, gt=0, le=10, description="of the softmax from a token to the tokens (paper 0.2)"
    )
    weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the words in what is covered, the rest is the image's (paper 0.5)",
    )


def apply(tokens: Tensor, cues: Cues, keep: int, options: MmtokOptions) -> Reduction:
    """K times the one of [B, N, C] that adds most to the words and the patches that are covered."""
    prompt, features = cues.prompt, cues.features
    assert prompt is not None
    assert features is not None
    n = tokens.shape[1]
    said, seen = (normalize(x.to(torch.float32)) for x in (prompt.embeds, tokens))
    words = (said @ seen.transpose(1, 2) / options.text_temperature).softmax(-1)
    real = prompt.mask.to(torch.float32)
    share = options.weight * real / real.sum(-1, keepdim=True).clamp_min(1)
    patches = (cosine_matrix(features.to(torch.float32)) / options.vision_temperature).softmax(-1)
    rows = torch.cat([words * share[..., None], patches * ((1 - options.weight) / n)], dim=1)
    indices = largest_cover(rows.transpose(1, 2), keep)
    return Reduction(take(tokens, indices), indices)


REDUCER = Reducer(
    apply=apply,
    site=Site.PROJECTOR_OUTPUT,
    source="arXiv 2508.18264",
    filter="gain in how well words and patches are covered, greedily",
    options=MmtokOptions,
    cues=frozenset({"prompt", "features"}),
    published=Published({128: 97.5, 64: 96.3, 32: 93.4}, ELEVEN),
)
