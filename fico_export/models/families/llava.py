"""LLaVA-1.5 and its likes: an image is one square, whose visual tokens stand in one run.

Source: Liu et al., arXiv 2310.03744.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import LlavaConfig

from fico_export.bundle.profiles import LayoutRecord, square
from fico_export.models.parts import llava_like
from fico_export.models.parts.llava_like import Images, Variety
from fico_export.models.source import Family
from fico_export.models.towers.clip import ClipConfig


def _images(config: Any, tower: ClipConfig, aside: int) -> Images:
    only = square(tower.image_size, tower.grid, aside=aside, patch_size=tower.patch_size)
    return Images((only,), LayoutRecord(rule="square"))


_LLAVA = Variety(
    name="LLaVA",
    model_type="llava",
    config_class=LlavaConfig,
    transformers_class="LlavaForConditionalGeneration",
    image_processor="LlavaImageProcessor",
    images=_images,
)

FAMILY = Family(
    model_types=("llava",),
    aliases={
        "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
        "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
        "bakllava": "llava-hf/bakLlava-v1-hf",
        "llava-interleave-qwen-0.5b": "llava-hf/llava-interleave-qwen-0.5b-hf",
    },
    load=partial(llava_like.load, _LLAVA),
    describe=partial(llava_like.describe, _LLAVA),
)
