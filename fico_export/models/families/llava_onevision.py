"""LLaVA-OneVision: up to 36 more tiles of an image alone, resampled where they are many; several images are one tile each.

A video's frames are one tile each too, with half as many rows and columns of tokens.

Source: Li et al., arXiv 2408.03326; transformers' LlavaOnevisionForConditionalGeneration.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from transformers import LlavaOnevisionConfig

from fico_export.errors import CheckpointError
from fico_export.models.parts import anyres, llava_like
from fico_export.models.parts.llava_like import Images, Variety
from fico_export.models.source import Family, Files
from fico_export.models.towers.clip import ClipConfig

_RATIO = re.compile(r"anyres_max_([1-9][0-9]?)")


def _images(config: Any, tower: ClipConfig, aside: int) -> Images:
    return anyres.images(
        config, tower, aside, most=_most(config.vision_aspect_ratio), single=True, videos=True
    )


def _most(ratio: Any) -> int:
    """N of `anyres_max_N`: as many tokens as N tiles have, a grid of tiles has at most.

    Raises:
        CheckpointError: it is another rule.
    """
    found = _RATIO.fullmatch(ratio) if isinstance(ratio, str) else None
    if found is None:
        raise CheckpointError(
            f"vision_aspect_ratio {ratio!r:.40} is not supported",
            fix="supported: anyres_max_N with N of 1 … 99, such as anyres_max_9",
        )
    return int(found[1])


def _files(files: Files, config: Any) -> Files:
    """The text files, whose processor has the config's tiles and its rule for many of them.

    Raises:
        CheckpointError: it has others.
    """
    ratio = files.processor.get("vision_aspect_ratio", config.vision_aspect_ratio)
    if ratio != config.vision_aspect_ratio:
        raise CheckpointError(
            f"vision_aspect_ratio is {ratio!r:.40} in processor_config.json and {config.vision_aspect_ratio!r:.40} in config.json",
            fix="use the processor_config.json and config.json of one checkpoint",
        )
    return anyres.same_pinpoints(files, config)


_ONEVISION = Variety(
    name="LLaVA-OneVision",
    model_type="llava_onevision",
    config_class=LlavaOnevisionConfig,
    transformers_class="LlavaOnevisionForConditionalGeneration",
    image_processor="LlavaOnevisionImageProcessor",
    images=_images,
    files=_files,
)

FAMILY = Family(
    model_types=("llava_onevision",),
    aliases={
        "llava-onevision-qwen2-0.5b": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "llava-onevision-qwen2-7b": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    },
    load=partial(llava_like.load, _ONEVISION),
    describe=partial(llava_like.describe, _ONEVISION),
)
