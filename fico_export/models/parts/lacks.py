"""Cues that no model gives whose merger joins patches and whose tower is of no CLIP model, each with the reason."""

from __future__ import annotations

OF_JOINED = {
    "clip_text": "the prompt in the space of a CLIP model, of whose tower this model's is none",
    "clip_tokens": "the tokens in the space of a CLIP model, of whose tower this model's is none",
    "sensitivity": "how far the projector moves a token, which is not known where it joins several",
}
