"""Names of a bundle's graphs and of a tensor that several places know, in the manifest and, with a suffix for the precision, of their files."""

from __future__ import annotations

VISION = "vision_encoder"
"""Of the first profile; that of another profile has the profile's name after it."""

EMBEDDING = "embed_tokens"
CLIP_TEXT = "clip_text"
DECODER = "decoder_model_merged"
PREFILL = "decoder_prefill"
"""With `WITH_PAST`, in the place of `DECODER` where the decoder reduces visual tokens."""

WITH_PAST = "decoder_with_past"
DECODERS = (DECODER, PREFILL, WITH_PAST)

VALID = "valid"
"""Input of a vision graph that is told which tokens show padding [T, N]."""

DEEPSTACK = "deepstack_features"
"""Output of a vision graph: what such a decoder adds for the visual tokens [1, L, K, D]."""

VISUAL_ROWS = "visual_rows"
"""Input of `PREFILL`: the rows of the prompt where the image's visual tokens stand [1, N], ascending."""

VISUAL_START = "visual_start"
"""In its place in bundles that were exported before: the first row of one run [1]."""

PLANES = "deepstack_embeds"
"""Input of a decoder that adds something to its hidden states after its first layers [B, L, S, C]."""
