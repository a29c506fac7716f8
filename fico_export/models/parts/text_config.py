"""The decoder of a config.json: `text_config` as transformers reads it, of any family."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fico_export.errors import CheckpointError
from fico_export.models.decoders.base import DecoderConfig
from fico_export.models.parts import config_check

# With biases on q, k and v, which their configs do not mention.
_BIASED = ("qwen2", "qwen2_5_vl_text")
_STATIC_ROPES = ("linear", "llama3", "yarn")  # frequencies that do not depend on the length of the prompt
# Nor do those of dynamic, up to max_position_embeddings, where the context ends.
_ROPES = (*_STATIC_ROPES, "dynamic")


def decoder_config(text: Any) -> DecoderConfig:
    """Shape of the decoder that a `text_config` of transformers describes.

    Raises:
        CheckpointError: its rotary embeddings are not supported.
    """
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    inv_freq, rope_scale = _rope(text, head_dim)
    bias = bool(getattr(text, "attention_bias", False))
    window = (
        text.sliding_window
        if getattr(text, "use_sliding_window", True) and hasattr(text, "sliding_window")
        else None
    )
    return DecoderConfig(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=text.vocab_size,
        # Within one window sliding attention is full attention; beyond it this decoder would differ, so it stops there.
        context=min(text.max_position_embeddings, window or text.max_position_embeddings),
        activation=text.hidden_act,
        norm_eps=text.rms_norm_eps,
        qkv_bias=bias or text.model_type in _BIASED,
        out_bias=bias,
        mlp_bias=bool(getattr(text, "mlp_bias", False)),
        inv_freq=inv_freq,
        rope_scale=rope_scale,
        rope_axes=_rope_axes(text, head_dim),
        qk_norm=text.model_type.startswith("qwen3"),
    )


def _rope_axes(text: Any, head_dim: int) -> tuple[int, ...]:
    """Which of time, row and column each rotary frequency [D/2] turns by; none where positions have one axis.

    The sections of an interleaved model go t, h, w, t, h, w, … as far as each reaches, and time has the rest.

    Raises:
        CheckpointError: the sections are not of three axes, or not of all frequencies.
    """
    sections = text.rope_parameters.get("mrope_section")
    if sections is None:
        return ()
    whole = isinstance(sections, list) and all(type(s) is int and s >= 0 for s in sections)
    if not whole or len(sections) != 3 or sum(sections) != head_dim // 2:
        raise CheckpointError(
            f"config.json: mrope_section of text_config is {sections!r:.60}, not three numbers that sum to {head_dim // 2}, half of head_dim",
            fix=config_check.FIX,
        )
    if not text.rope_parameters.get("mrope_interleaved"):
        return tuple(axis for axis, length in enumerate(sections) for _ in range(length))
    return tuple(j % 3 if j < 3 * sections[j % 3] else 0 for j in range(head_dim // 2))


def _rope(text: Any, head_dim: int) -> tuple[tuple[float, ...], float]:
    """Rotary frequencies [D/2] and the factor on cos and sin."""
    parameters = text.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        theta = parameters["rope_theta"]
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
        return tuple((1.0 / (theta**exponents)).tolist()), 1.0
    if kind not in _ROPES:
        raise CheckpointError(
            f"rope_type {kind!r} is not supported", fix=f"supported: default, {', '.join(_ROPES)}"
        )
    inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](text, torch.device("cpu"))
    if len(inv_freq) != head_dim // 2:
        raise CheckpointError(
            f"partial_rotary_factor {parameters.get('partial_rotary_factor')!r} of the decoder is not supported",
            fix="supported: 1.0, where all channels of a head are rotated",
        )
    if not bool(torch.isfinite(inv_freq).all()) or not math.isfinite(scale):
        raise CheckpointError(
            f"config.json: the rotary embeddings of text_config have frequencies that are not finite: {parameters!r:.200}",
            fix=config_check.FIX,
        )
    return tuple(inv_freq.tolist()), float(scale)
