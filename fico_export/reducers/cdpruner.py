"""CDPruner: the K tokens that span the largest volume, each weighted by its relevance to the prompt (NeurIPS 2025).

Source: arXiv 2506.10967; Theia-4869/CDPruner@9541616, llava/model/llava_arch.py.
Differs from the reference: a prompt longer than CLIP reads is cut into segments that all begin and end as CLIP's texts do;
    the reference cuts after it has marked the ends of the whole.
Needs the text tower of the CLIP model that the vision tower comes from: `--clip-text MODEL`.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import ELEVEN, NINE_IN_TILES
from fico_export.reducers.base.reducer import InTiles, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.filter import cosine_matrix, normalize
from fico_export.reducers.stages.greedy import largest_volume
from fico_export.reducers.stages.select import take

_LEAST = 1e-6  # relevance of the least relevant token, before the division by the range (code)


class CdprunerOptions(Options):
    """Hyper-parameters; the default is the code's."""

    theta: float | None = Field(
        None,
        ge=0,
        le=0.95,
        description="balance of relevance against diversity, weighs by exp(θ/(2(1−θ))·relevance); "
        "default the relevance itself (code)",
    )


def apply(tokens: Tensor, cues: Cues, keep: int, options: CdprunerOptions) -> Reduction:
    """K times the one of [B, N, C] that those kept so far explain least, times the square of its weight."""
    relevance = _relevance(cues)
    if options.theta is None:
        weights = relevance.square()
    else:
        weights = (options.theta / (1 - options.theta) * relevance).exp()
    indices = largest_volume(cosine_matrix(tokens.to(torch.float32)), keep, weights)
    return Reduction(take(tokens, indices), indices)


def _relevance(cues: Cues) -> Tensor:
    """[B, n] in about 0 … 1: how unlike the text each token is, for CLIP's patches look least like what they show."""
    tokens, text = cues.clip_tokens, cues.clip_text
    assert tokens is not None
    assert text is not None
    unlike = -(normalize(tokens.to(torch.float32)) @ text.to(torch.float32)[..., None]).squeeze(-1)
    low, high = unlike.amin(-1, keepdim=True), unlike.amax(-1, keepdim=True)
    # Where all are alike, all get 1: what is left then is the volume alone.
    return (unlike - low + _LEAST) / (high - low).clamp_min(_LEAST)


REDUCER = Reducer(
    apply=apply,
    site=Site.PROJECTOR_OUTPUT,
    source="arXiv 2506.10967; github.com/Theia-4869/CDPruner",
    filter="what the kept tokens leave unexplained (determinantal point process) times relevance to the prompt, greedily",
    options=CdprunerOptions,
    cues=frozenset({"clip_text", "clip_tokens"}),
    without_cls=None,  # such a tower is not CLIP's, and its features are nothing in CLIP's space
    published=Published({128: 97.3, 64: 96.3}, ELEVEN),
    in_tiles=InTiles(
        "--clip-text MODEL --positions compact", {640: 99.5, 320: 97.3, 160: 94.9}, NINE_IN_TILES
    ),
)
