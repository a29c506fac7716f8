"""PyramidDrop: at a few depths of the decoder, keep what the prompt's last token attends to (CVPR 2025).

Source: arXiv 2410.17247; Cooperx521/PyramidDrop@6444f30, modeling_llama_pdrop.py.
Differs from the reference: a budget K, approached by equal ratios; tokens keep their position ids, where the reference
    numbers them anew.
"""

from __future__ import annotations

from torch import Tensor

from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import EIGHT_IN_TILES, NINE
from fico_export.reducers.base.reducer import Depth, InTiles, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.base.schedule import LayersField, by_equal_ratios
from fico_export.reducers.stages.select import take, top_indices


class PyramiddropOptions(Options):
    """Hyper-parameters."""

    layers: str | None = LayersField(
        "layers before which tokens are dropped; default 8,16,24 of 32, or in proportion (code)"
    )


def apply(tokens: Tensor, cues: Cues, keep: int, options: PyramiddropOptions) -> Reduction:
    """The K of [B, N, C] with the most attention from the last token of the prompt."""
    kept = top_indices(cues.last_attention(), keep)
    return Reduction(take(tokens, kept), kept)


def schedule(visual_tokens: int, keep: int, depth: Depth, options: PyramiddropOptions) -> dict[int, int]:
    """N to K by equal ratios: with three layers and K = N/8, half of the tokens each time, as published.

    Raises:
        ConfigError: layers that this decoder does not have, or not ascending.
    """
    layers = [depth.total * i // 4 for i in (1, 2, 3)]
    return by_equal_ratios(visual_tokens, keep, options.layers, layers, depth.total - 1)


REDUCER = Reducer(
    apply=apply,
    site=Site.DECODER_LAYER,
    source="arXiv 2410.17247; github.com/Cooperx521/PyramidDrop",
    filter="attention from the prompt's last token, at several depths",
    options=PyramiddropOptions,
    cues=frozenset({"last_attention"}),
    schedule=schedule,
    before_attention=True,
    published=Published({192: 96.7, 128: 94.9, 64: 77.5}, f"{NINE}; K is the mean over layers"),
    in_tiles=InTiles("", {640: 96.6, 320: 79.4}, EIGHT_IN_TILES),
)
