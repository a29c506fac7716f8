"""Qwen2.5-VL: a tower of windows, positions of time, row and column in three blocks of each head.

Source: Bai et al., arXiv 2502.13923; transformers' Qwen2_5_VLForConditionalGeneration.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import Qwen2_5_VLConfig

from fico_export.errors import CheckpointError
from fico_export.models.layers import RmsNorm
from fico_export.models.parts import config_check, qwen_vl
from fico_export.models.parts.qwen_vl import Variety
from fico_export.models.source import Family
from fico_export.models.towers import qwen2_5_vl
from fico_export.models.towers.qwen import QwenVisionConfig


def _shape(seen: Any, grid: tuple[int, int]) -> QwenVisionConfig:
    window = seen.window_size // seen.spatial_merge_size // seen.patch_size
    if not window:
        raise CheckpointError(
            f"config.json: vision_config.window_size is {seen.window_size}, less than the {seen.patch_size * seen.spatial_merge_size} "
            "pixels of a visual token",
            fix=config_check.FIX,
        )
    return qwen_vl.tower_shape(seen, grid, window=window, full=frozenset(seen.fullatt_block_indexes))


_QWEN = Variety(
    name="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    config_class=Qwen2_5_VLConfig,
    transformers_class="Qwen2_5_VLForConditionalGeneration",
    image_processor="Qwen2VLImageProcessor",
    shape=_shape,
    tower=qwen2_5_vl.tower,
    norm=lambda channels: RmsNorm(channels, qwen2_5_vl.NORM_EPS),
)

FAMILY = Family(
    model_types=("qwen2_5_vl",),
    aliases={
        "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
        "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    },
    load=partial(qwen_vl.load, _QWEN),
    describe=partial(qwen_vl.describe, _QWEN),
)
