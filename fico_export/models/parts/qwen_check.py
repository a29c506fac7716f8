"""What the config.json of a Qwen-VL may say, as `config_check` asks it of LLaVA's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator, TypeAdapter
from typing_extensions import TypedDict

from fico_export.models.parts import config_check
from fico_export.models.parts.config_check import (
    Activation,
    Channels,
    Decoder,
    Heads,
    Inner,
    Labels,
    Layers,
    Pixels,
    Rgb,
    Switch,
    Token,
    must_be,
    whole,
)


def _layers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 1000
        and all(type(layer) is int and 0 <= layer < 1000 for layer in value)
        and len(set(value)) == len(value)
    )


LayerNumbers = Annotated[
    list[int], PlainValidator(must_be("a list of different layers, counted from 0", _layers))
]
Side = Annotated[int, whole(1, 16)]
Frames = Annotated[int, whole(1, 16)]


class _Tower(TypedDict, total=False):
    depth: Layers
    hidden_size: Channels
    intermediate_size: Inner
    num_heads: Heads
    hidden_act: Activation
    in_channels: Rgb
    in_chans: Rgb
    patch_size: Pixels
    spatial_patch_size: Pixels
    spatial_merge_size: Side
    temporal_patch_size: Frames
    out_hidden_size: Channels
    window_size: Pixels
    fullatt_block_indexes: LayerNumbers
    deepstack_visual_indexes: LayerNumbers
    num_position_embeddings: Annotated[int, whole(1, 2**20)]


class _QwenVl(TypedDict, total=False):
    num_labels: Labels
    text_config: Decoder | None
    vision_config: Annotated[_Tower, config_check.OBJECT] | None
    image_token_id: Token
    video_token_id: Token
    tie_word_embeddings: Switch | None


_QWEN, _FLAT = TypeAdapter(_QwenVl), TypeAdapter(Decoder)


def check(raw: Mapping[str, Any]) -> None:
    """Refuse a config.json with a value that no model has; the decoder's may stand at its top level.

    Raises:
        CheckpointError: naming the key, its value and what it may be.
    """
    config_check.check_parts(raw)
    config_check.check_values(_QWEN, raw)
    if not raw.get("text_config"):
        config_check.check_values(_FLAT, raw)
        config_check.check_fit({"text_config": raw})
    config_check.check_fit(raw)
