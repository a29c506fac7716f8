"""LLaVA-NeXT (LLaVA 1.6): LLaVA with up to four more tiles of the image, their padding cut off, a newline vector after each row.

Source: llava-vl.github.io/blog/2024-01-30-llava-next; transformers' LlavaNextForConditionalGeneration.
"""

from __future__ import annotations

from functools import partial

from transformers import LlavaNextConfig

from fico_export.models.parts import anyres, llava_like
from fico_export.models.parts.llava_like import Variety
from fico_export.models.source import Family

_NEXT = Variety(
    name="LLaVA-NeXT",
    model_type="llava_next",
    config_class=LlavaNextConfig,
    transformers_class="LlavaNextForConditionalGeneration",
    image_processor="LlavaNextImageProcessor",
    images=anyres.images,
    files=anyres.same_pinpoints,
)

FAMILY = Family(
    model_types=("llava_next",),
    aliases={
        "llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
        "llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
        "llama3-llava-next-8b": "llava-hf/llama3-llava-next-8b-hf",
    },
    load=partial(llava_like.load, _NEXT),
    describe=partial(llava_like.describe, _NEXT),
)
