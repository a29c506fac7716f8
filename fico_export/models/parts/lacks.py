"""Cues that a model lacks, each with the reason that a refusal gives."""

from __future__ import annotations

# The merger joins patches, and the tower belongs to no CLIP model: Qwen-VL, SmolVLM, Idefics3, InternVL.
OF_JOINED = {
    "clip_text": "the prompt in the space of a CLIP model, of whose tower this model's is none",
    "clip_tokens": "the tokens in the space of a CLIP model, of whose tower this model's is none",
    "sensitivity": "how far the projector moves a token, which is not known where it joins several",
}
