"""InternVL3 and 3.5, the dense ones in transformers' layout (`-hf`): InternViT, cells of 2×2 patches, a Qwen2 or Qwen3 decoder.

Source: Zhu et al., arXiv 2504.10479; transformers' InternVLForConditionalGeneration.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from transformers import InternVLConfig

from fico_export.errors import CheckpointError
from fico_export.models.mergers.joined_projector import JoinedProjector
from fico_export.models.parts import config_check, tiled
from fico_export.models.parts.tiled import Tiles, Variety
from fico_export.models.parts.tower_shape import tower_shape
from fico_export.models.source import Family
from fico_export.models.towers.clip import ClipConfig
from fico_export.models.towers.internvit import NORMS, InternVit, InternVitConfig
from fico_export.models.weights import RENAMES


def _shape(config: Any) -> InternVitConfig:
    vision = config.vision_config
    for key, value, expected in (
        ("vision_config.norm_type", vision.norm_type, NORMS),
        ("vision_config.use_mean_pooling", vision.use_mean_pooling, (True,)),
        ("vision_config.use_absolute_position_embeddings", vision.use_absolute_position_embeddings, (True,)),
        ("vision_feature_layer", config.vision_feature_layer, (-1, [-1])),
        ("vision_feature_select_strategy", config.vision_feature_select_strategy, ("default",)),
    ):
        if value not in expected:
            raise CheckpointError(
                f"config.json: {key} {value!r:.60} is not supported",
                fix=f"supported: {', '.join(map(str, expected))}; {config_check.FIX}",
            )
    return tower_shape(
        InternVitConfig,
        vision,
        side=round(1 / config.downsample_ratio),
        norm=vision.norm_type,
        qk_norm=vision.use_qk_norm,
        qkv_bias=vision.attention_bias,
    )


def _merger(config: Any, shape: ClipConfig, dtype: torch.dtype) -> JoinedProjector:
    outputs, activation = config.text_config.hidden_size, config.projector_hidden_act
    return JoinedProjector(shape.side, shape.hidden_size, outputs, activation, dtype)


def _tiles(given: Mapping[str, Any], side: int) -> Tiles:
    """The grids of a preprocessor_config.json, by the number of their tiles; transformers' processor makes tiles whatever the file says.

    Raises:
        CheckpointError: it makes tiles of another size than the tower sees.
    """
    least = tiled.whole_number(given, "min_patches", 1, 1, 255)
    most = tiled.whole_number(given, "max_patches", 12, least, 255)
    size = given.get("size") or {"height": side, "width": side}
    if size != {"height": side, "width": side}:
        raise CheckpointError(
            f"preprocessor_config.json: size is {size!r:.60}, and config.json makes it {side} by {side}",
            fix="use the preprocessor_config.json and config.json of one checkpoint",
        )
    every = [(rows, columns) for columns in range(1, most + 1) for rows in range(1, most + 1)]
    grids = sorted(
        (grid for grid in every if least <= grid[0] * grid[1] <= most), key=lambda grid: grid[0] * grid[1]
    )
    return Tiles(tiled.at_most(grids, "max_patches"), {}, {"start": "<img>", "end": "</img>"})


_INTERNVL = Variety(
    name="InternVL",
    model_type="internvl",
    config_class=InternVLConfig,
    transformers_class="InternVLForConditionalGeneration",
    image_processor="GotOcr2ImageProcessor",
    rule="tiles",
    decoders=("qwen2", "qwen3", "llama", "mistral"),
    shape=_shape,
    tower=InternVit,
    has_cls=True,
    merger=_merger,
    tiles=_tiles,
    length="image_seq_length",
    renames=(*RENAMES, *tiled.renames((r"vision_tower\.encoder\.layer\.", "vision_tower.encoder.layers."))),
    unread=lambda name: name == "vision_tower.embeddings.mask_token",
)

FAMILY = Family(
    model_types=("internvl",),
    aliases={
        "internvl3-1b": "OpenGVLab/InternVL3-1B-hf",
        "internvl3-2b": "OpenGVLab/InternVL3-2B-hf",
        "internvl3-8b": "OpenGVLab/InternVL3-8B-hf",
        "internvl3.5-1b": "OpenGVLab/InternVL3_5-1B-HF",
        "internvl3.5-2b": "OpenGVLab/InternVL3_5-2B-HF",
        "internvl3.5-8b": "OpenGVLab/InternVL3_5-8B-HF",
    },
    load=partial(tiled.load, _INTERNVL),
    describe=partial(tiled.describe, _INTERNVL),
)
