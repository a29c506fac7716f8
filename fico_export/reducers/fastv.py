"""FastV: after the decoder's first layers, keep the visual tokens that the prompt's last token attends to (ECCV 2024).

Source: arXiv 2403.06764; pkunlp-icler/FastV@d165972, modeling_llama.py.
Differs from the reference: a budget K in place of a share; the same otherwise, original position ids included.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from fico_export.errors import ConfigError
from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import EIGHT_IN_TILES, NINE
from fico_export.reducers.base.reducer import Depth, InTiles, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.stages.select import take, top_indices


class FastvOptions(Options):
    """Hyper-parameters."""

    layer: int = Field(
        2, ge=1, description="decoder layers that see all tokens; the last of them scores (paper 2)"
    )


def apply(tokens: Tensor, cues: Cues, keep: int, options: FastvOptions) -> Reduction:
    """The K of [B, N, C] with the most attention from the last token of the prompt."""
    kept = top_indices(cues.last_attention(), keep)
    return Reduction(take(tokens, kept), kept)


def schedule(visual_tokens: int, keep: int, depth: Depth, options: FastvOptions) -> dict[int, int]:
    """All at once, after the attention of layer `layer` − 1.

    Raises:
        ConfigError: the decoder has no layer after that one.
    """
    if options.layer > depth.used:
        raise ConfigError(
            f"layer={options.layer}, but this decoder has {depth.total} layers",
            fix=f"--set layer=N with N at most {depth.used}",
        )
    return {options.layer - 1: keep}


REDUCER = Reducer(
    apply=apply,
    site=Site.DECODER_LAYER,
    source="arXiv 2403.06764; github.com/pkunlp-icler/FastV",
    filter="attention from the prompt's last token, once",
    options=FastvOptions,
    cues=frozenset({"last_attention"}),
    schedule=schedule,
    published=Published({192: 90.5, 128: 85.4, 64: 76.7}, f"{NINE}; K is the mean over layers"),
    in_tiles=InTiles("", {640: 95.0, 320: 75.3}, EIGHT_IN_TILES),
)
