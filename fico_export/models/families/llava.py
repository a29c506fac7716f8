"""LLaVA-1.5 and its likes: an image is one square, whose visual tokens stand in one run.

Source: Liu et al., arXiv 2310.03744.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import LlavaConfig

from fico_export.bundle.profiles import LayoutRecord, square
from fico_export.errors import CheckpointError
from fico_export.models.parts import llava_like
from fico_export.models.parts.llava_like import Images, Variety
from fico_export.models.source import Family, Files
from fico_export.models.towers.clip import ClipConfig

_OF_TILES = ("LlavaNextImageProcessor", "LlavaOnevisionImageProcessor")


def _images(config: Any, tower: ClipConfig, aside: int) -> Images:
    only = square(tower.image_size, tower.grid, aside=aside, patch_size=tower.patch_size)
    return Images((only,), LayoutRecord(rule="square"))


def _files(files: Files, config: Any) -> Files:
    """The text files, whose image processor makes one square of an image.

    Raises:
        CheckpointError: it makes tiles.
    """
    named = str(files.preprocessor.get("image_processor_type"))
    if named.startswith(_OF_TILES):
        raise CheckpointError(
            f"preprocessor_config.json names {named:.60}, which cuts an image into tiles, and this model sees one square",
            fix="use the preprocessor_config.json that was published with this checkpoint",
        )
    return files


_LLAVA = Variety(
    name="LLaVA",
    model_type="llava",
    config_class=LlavaConfig,
    transformers_class="LlavaForConditionalGeneration",
    image_processor="LlavaImageProcessor",
    images=_images,
    files=_files,
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
