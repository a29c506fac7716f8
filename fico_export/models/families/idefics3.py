"""Idefics3, and the first SmolVLM, whose checkpoints are of its model type: SmolVLM's parts.

Source: Laurençon et al., arXiv 2408.12637; transformers' Idefics3ForConditionalGeneration.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from transformers import Idefics3Config

from fico_export.models.families.smolvlm import SMOLVLM
from fico_export.models.parts import tiled
from fico_export.models.source import Family

_IDEFICS3 = replace(
    SMOLVLM,
    name="Idefics3",
    model_type="idefics3",
    config_class=Idefics3Config,
    transformers_class="Idefics3ForConditionalGeneration",
    image_processor="Idefics3ImageProcessor",
)

FAMILY = Family(
    model_types=("idefics3",),
    aliases={
        "smolvlm-256m": "HuggingFaceTB/SmolVLM-256M-Instruct",
        "smolvlm-500m": "HuggingFaceTB/SmolVLM-500M-Instruct",
        "smolvlm-2.2b": "HuggingFaceTB/SmolVLM-Instruct",
        "idefics3-8b": "HuggingFaceM4/Idefics3-8B-Llama3",
    },
    load=partial(tiled.load, _IDEFICS3),
    describe=partial(tiled.describe, _IDEFICS3),
)
