"""FiCoCo-VL: FiCoCo-V in the tower, then FiCoCo-L in the decoder.

Source: arXiv 2411.17686v1; kawhiiiileo/FiCoCo@8995e93.
Differs from the reference: how the budget is split between the two is published nowhere; here both shrink the tokens by the same
    ratio unless `split` says otherwise. For options of the two parts, write them as a chain.
"""

from __future__ import annotations

from pydantic import Field

from fico_export.reducers.base.reducer import Composite, Options


class FicocoVlOptions(Options):
    """Hyper-parameters."""

    split: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the reduction that the tower does, on a logarithmic scale: it keeps N^(1−split)·K^split (ours)",
    )


def split(visual_tokens: int, keep: int, options: FicocoVlOptions) -> list[int]:
    """What the tower hands over, and K."""
    return [max(keep, round(visual_tokens ** (1 - options.split) * keep**options.split)), keep]


REDUCER = Composite(
    parts=("ficoco-v", "ficoco-l"),
    split=split,
    source="arXiv 2411.17686v1; github.com/kawhiiiileo/FiCoCo",
    options=FicocoVlOptions,
)
