"""FiCoCo-L: filter, correlate and compress in the decoder's layers, by attention to the text (AAAI 2026).

Source: arXiv 2411.17686; kawhiiiileo/FiCoCo@bb3172b, llava/model/language_model/FiCoCo_L.py.
Differs from the reference: attention from an image to the text behind it is zero under a causal mask, so logits before mask and
    softmax are read, as the code does. The code's visual span begins at the first token of the prompt, and its merging
    does not divide; this is what the paper intends. Tokens keep their position ids.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from fico_export.errors import ConfigError
from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.reducer import Depth, Options, Published, Reducer, Reduction, Site
from fico_export.reducers.base.schedule import evenly
from fico_export.reducers.stages.compress import self_preserving
from fico_export.reducers.stages.correlate import pair, strongest, targets_per_source
from fico_export.reducers.stages.select import mask_to_indices, take, top_mask


class FicocoLOptions(Options):
    """Hyper-parameters; defaults are the paper's."""

    beta: float = Field(0.6, ge=0, le=1, description="weight of the visual term of redundancy (paper 0.6)")
    gamma: float = Field(0.6, ge=0, le=1, description="weight of direct correlation (paper 0.6)")
    epsilon: float = Field(0.998, ge=0, lt=1, description="quantile of the merge threshold (paper 0.998)")
    first_layer: int | None = Field(
        None,
        ge=0,
        description="first layer that drops tokens, from 0; default depth/8 − 1 (paper 3 of 32, code 5)",
    )


def apply(tokens: Tensor, cues: Cues, keep: int, options: FicocoLOptions) -> Reduction:
    """Merge the N − K most redundant of [B, N, C] into the others."""
    n = tokens.shape[1]
    among = cues.logits()
    to_text, from_text = cues.text_logits()
    assert cues.prompt is not None
    text = cues.prompt.mask.to(among.dtype)
    share = text / text.sum(-1, keepdim=True)

    relevance = (to_text * share[:, None]).sum(-1)
    score = options.beta * among.mean(-1) - (1 - options.beta) * relevance
    removed = top_mask(score, n - keep)
    sources, targets = mask_to_indices(removed, n - keep), mask_to_indices(~removed, keep)

    through_text = (take(to_text, sources) * share[:, None]) @ take(
        from_text.transpose(1, 2), targets
    ).transpose(1, 2)
    correlation = options.gamma * pair(among, sources, targets) + (1 - options.gamma) * through_text
    chosen = strongest(correlation, targets_per_source(options.epsilon, keep))
    weights = correlation.masked_fill(~chosen, float("-inf")).softmax(-1)
    return Reduction(self_preserving(take(tokens, targets), take(tokens, sources), weights), targets)


def schedule(visual_tokens: int, keep: int, depth: Depth, options: FicocoLOptions) -> dict[int, int]:
    """Evenly over the layers from `first_layer` to the last but one.

    Raises:
        ConfigError: `first_layer` leaves no layer to act in.
    """
    first = max(0, depth.total // 8 - 1) if options.first_layer is None else options.first_layer
    if first >= depth.used:
        raise ConfigError(
            f"first_layer={first}, but after layer {depth.used - 1} of this decoder nothing is left to shorten",
            fix=f"--set first_layer=N with N at most {depth.used - 1}",
        )
    return evenly(visual_tokens, keep, first, depth.used - first)


REDUCER = Reducer(
    apply=apply,
    site=Site.DECODER_LAYER,
    source="arXiv 2411.17686; github.com/kawhiiiileo/FiCoCo",
    filter="attention logits among visual tokens against those to the text",
    correlate="attention logits to each kept token, direct and by way of the text, the strongest 1–2",
    compress="self-preserving weighted mean",
    options=FicocoLOptions,
    cues=frozenset({"logits", "text_logits", "prompt"}),
    schedule=schedule,
    published=Published(
        {192: 98.0, 128: 96.3, 64: 92.8}, "6 benchmarks at the FLOPs of K tokens, arXiv 2411.17686"
    ),
)
