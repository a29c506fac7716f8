"""FiCoCo-V: filter, correlate and compress inside the vision tower (AAAI 2026); the default.

Source: arXiv 2411.17686; kawhiiiileo/FiCoCo@8995e93, llava/model/multimodal_encoder/FiCoCo_V.py.
Differs from the reference: the released code cannot have produced the paper's figures (it loses the CLS token,
    scrambles the order, merges into wrong rows and keeps state between images), so this is the method the paper
    intends. Where paper and code differ by choice, both are options: `--set lam=0.65 --set first_layer=12` reads
    as the code, `--set attention=softmax --set normalize=false` as the paper. The quantile is the top-k that it equals.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from fico_export.errors import ConfigError
from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.protocols import NINE
from fico_export.reducers.base.reducer import Depth, InTiles, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.base.schedule import evenly
from fico_export.reducers.stages import filter as filters
from fico_export.reducers.stages.compress import self_preserving
from fico_export.reducers.stages.correlate import pair, strongest, targets_per_source
from fico_export.reducers.stages.select import mask_to_indices, take, top_mask


class FicocoVOptions(Options):
    """Hyper-parameters; defaults are the paper's where it and the code differ, but for the attention read."""

    lam: float = Field(0.35, ge=0, le=1, description="weight of the patch term (paper 0.35, code 0.65)")
    attention: Literal["logits", "softmax"] = Field(
        "logits",
        description="what is read: row means of scaled q·k, or softmax attention received (code; paper's wording softmax)",
    )
    normalize: bool = Field(True, description="divide each term by its L2 norm (code true, paper false)")
    epsilon: float = Field(0.998, ge=0, lt=1, description="quantile of the merge threshold (paper 0.998)")
    window: int = Field(2, ge=1, le=64, description="side of the local-penalty windows in patches (paper 2)")
    penalty: float = Field(2.0, gt=0, description="local-penalty coefficient; 1 turns it off (paper 2)")
    first_layer: int | None = Field(
        None,
        ge=0,
        description="first layer that drops tokens, from 0; default depth/2 − 1 (paper 11 of 24, code 12)",
    )


def apply(tokens: Tensor, cues: Cues, keep: int, options: FicocoVOptions) -> Reduction:
    """Merge the N − K most redundant of [B, N, C] into the others."""
    n = tokens.shape[1]
    cls = 1 if cues.has_cls else 0
    affinity = cues.logits() if options.attention == "logits" else cues.attention()
    patches = affinity[:, cls:, cls:]

    redundancy = patches.mean(-1) if options.attention == "logits" else patches.mean(-2)
    relevance = affinity[:, 0, 1:] if cues.has_cls else filters.distance_from_mean(cues.mean_keys())
    if options.normalize:
        redundancy, relevance = filters.normalize(redundancy), filters.normalize(relevance)
    score = options.lam * redundancy - (1 - options.lam) * relevance
    score = filters.local_penalty(score, cues.positions, cues.grid, options.window, options.penalty)
    removed = top_mask(score, n - keep)
    sources, targets = mask_to_indices(removed, n - keep), mask_to_indices(~removed, keep)

    correlation = pair(patches, sources, targets)
    chosen = strongest(correlation, targets_per_source(options.epsilon, keep))
    if options.attention == "logits":
        weights = correlation.masked_fill(~chosen, float("-inf")).softmax(-1)
    else:
        weights = correlation.masked_fill(~chosen, 0.0)
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)

    return Reduction(self_preserving(take(tokens, targets), take(tokens, sources), weights), targets)


def schedule(visual_tokens: int, keep: int, depth: Depth, options: FicocoVOptions) -> dict[int, int]:
    """Drop N − K tokens evenly over the layers from `first_layer` on; the first layers drop one more if need be.

    Raises:
        ConfigError: `first_layer` leaves no layer to act in.
    """
    first = max(0, depth.total // 2 - 1) if options.first_layer is None else options.first_layer
    layers = depth.used - first
    if layers < 1:
        raise ConfigError(
            f"first_layer={first}, but only layers 0 … {depth.used - 1} feed the projector",
            fix=f"--set first_layer=N with N at most {depth.used - 1}",
        )
    return evenly(visual_tokens, keep, first, layers)


REDUCER = Reducer(
    apply=apply,
    site=Site.ENCODER_LAYER,
    source="arXiv 2411.17686; github.com/kawhiiiileo/FiCoCo",
    filter="attention among patches against attention from CLS, with a local penalty",
    correlate="attention from each removed token to each kept one, the strongest 1–2",
    compress="self-preserving weighted mean",
    options=FicocoVOptions,
    cues=frozenset({"logits", "attention", "mean_keys"}),
    schedule=schedule,
    without_cls="distance from the mean key in place of CLS attention",
    published=Published({192: 96.1, 128: 94.9, 64: 91.5}, NINE),
    in_tiles=InTiles("", {640: 96.2, 320: 93.0, 160: 87.5}, "7 benchmarks, STD"),
)
