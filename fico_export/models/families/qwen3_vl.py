"""Qwen3-VL, its dense models: features of earlier layers of the tower are added after the first layers of the decoder (DeepStack).

Source: transformers' Qwen3VLForConditionalGeneration.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from transformers import Qwen3VLConfig

from fico_export.errors import CheckpointError
from fico_export.models.layers import LayerNorm
from fico_export.models.parts import config_check, qwen_vl
from fico_export.models.parts.qwen_vl import Variety
from fico_export.models.source import Family
from fico_export.models.towers import qwen3_vl
from fico_export.models.towers.qwen import QwenVisionConfig


def _shape(seen: Any, grid: tuple[int, int]) -> QwenVisionConfig:
    table = math.isqrt(seen.num_position_embeddings)
    if table**2 != seen.num_position_embeddings:
        raise CheckpointError(
            f"config.json: vision_config.num_position_embeddings is {seen.num_position_embeddings}, not a square",
            fix=config_check.FIX,
        )
    return qwen_vl.tower_shape(seen, grid, table=table)


def _planes(seen: Any) -> tuple[int, ...]:
    """Layers after which a plane is made. The decoder adds them in this order, which is that of the tower.

    Raises:
        CheckpointError: they are not ascending, or there are no such layers.
    """
    asked = tuple(seen.deepstack_visual_indexes)
    if asked != tuple(sorted(asked)) or any(layer >= seen.depth for layer in asked):
        raise CheckpointError(
            f"config.json: vision_config.deepstack_visual_indexes is {list(asked)!r:.60}, not ascending layers of {seen.depth}",
            fix=config_check.FIX,
        )
    return asked


_QWEN = Variety(
    name="Qwen3-VL",
    model_type="qwen3_vl",
    config_class=Qwen3VLConfig,
    transformers_class="Qwen3VLForConditionalGeneration",
    image_processor="Qwen2VLImageProcessor",
    shape=_shape,
    tower=qwen3_vl.tower,
    norm=lambda channels: LayerNorm(channels, qwen3_vl.NORM_EPS),
    planes=_planes,
    videos=True,
)

FAMILY = Family(
    model_types=("qwen3_vl",),
    aliases={
        "qwen3-vl-2b": "Qwen/Qwen3-VL-2B-Instruct",
        "qwen3-vl-4b": "Qwen/Qwen3-VL-4B-Instruct",
        "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
    },
    load=partial(qwen_vl.load, _QWEN),
    describe=partial(qwen_vl.describe, _QWEN),
)
