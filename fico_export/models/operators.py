"""Operators of later opsets, for the graphs whose runtimes have them: what torch would export in many nodes is one here.

They stand in a traced graph alone: run by torch, they compute nothing.
Source: RMSNormalization-23, RotaryEmbedding-23, Attention-24 and TensorScatter-24 in ONNX's docs/Operators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of [..., C] with weights [C] of the same dtype; its statistics are FP32."""
    return _of("RMSNormalization", 23, (x, weight), x, {"axis": -1, "epsilon": eps, "stash_type": 1})


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, half-split layout: x [B, H, S, D], cos and sin [B, S, D/2]."""
    return _of("RotaryEmbedding", 23, (x, cos, sin), x, {"interleaved": 0})


def scatter(cache: Tensor, rows: Tensor, start: Tensor) -> Tensor:
    """The cache [B, H, M, D] with `rows` [B, H, S, D] in it from row `start` [B] int64 on."""
    return _of("TensorScatter", 24, (cache, rows, start), cache, {"axis": -2, "mode": "linear"})


def attend(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
    """Attention of [B, H, S, D] to keys and values [B, kv heads, T, D], where `allowed` bool [1 or B, 1, S, T]."""
    return _of("Attention", 24, (queries, keys, values, allowed), queries, {})


def _of(
    operator: str, version: int, inputs: Sequence[Tensor], like: Tensor, attributes: dict[str, Any]
) -> Tensor:
    """One operator, whose output has dtype and shape of `like`."""
    result: Tensor = torch.onnx.ops.symbolic(
        operator, inputs, attributes, dtype=like.dtype, shape=like.shape, version=version
    )
    return result
