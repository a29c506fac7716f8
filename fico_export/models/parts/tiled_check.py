"""What the config.json of an InternVL, a SmolVLM or an Idefics3 may say, as `config_check` asks it of LLaVA's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainValidator, TypeAdapter
from typing_extensions import TypedDict

from fico_export.errors import CheckpointError
from fico_export.models.parts import config_check
from fico_export.models.parts.config_check import (
    Activation,
    Channels,
    Decoder,
    Epsilon,
    Heads,
    Inner,
    Labels,
    Layers,
    LayersJoined,
    Name,
    Rgb,
    Switch,
    Token,
    must_be,
    whole,
)
from fico_export.models.parts.tower_shape import side_of


def _square(value: Any) -> bool:
    sides = value if isinstance(value, list) else [value, value]
    return len(sides) == 2 and all(type(s) is int and 1 <= s <= 2**13 for s in sides) and sides[0] == sides[1]


Square = Annotated[Any, PlainValidator(must_be("a side in pixels, or two equal ones", _square))]
_HALVES = [1 / side for side in range(1, 17)]


class _Tower(TypedDict, total=False):
    num_hidden_layers: Layers
    hidden_size: Channels
    intermediate_size: Inner
    num_attention_heads: Heads
    hidden_act: Activation
    layer_norm_eps: Epsilon
    num_channels: Rgb
    image_size: Square
    patch_size: Square
    norm_type: Name
    use_qk_norm: Switch
    attention_bias: Switch
    use_mean_pooling: Switch
    use_absolute_position_embeddings: Switch


class _Tiled(TypedDict, total=False):
    num_labels: Labels
    text_config: Decoder | None
    vision_config: Annotated[_Tower, config_check.OBJECT] | None
    image_token_id: Token
    scale_factor: Annotated[int, whole(1, 16)]
    downsample_ratio: Annotated[
        float, PlainValidator(must_be("1 over a whole number of 1 … 16", _HALVES.__contains__))
    ]
    projector_hidden_act: Activation
    vision_feature_layer: LayersJoined
    vision_feature_select_strategy: Name
    tie_word_embeddings: Switch | None


_TILED = TypeAdapter(_Tiled)


def check(raw: Mapping[str, Any], decoders: tuple[str, ...]) -> None:
    """Refuse a config.json with a value that no model has, or a decoder that is not supported.

    Raises:
        CheckpointError: naming the key, its value and what it may be.
    """
    config_check.check_parts(raw)
    config_check.check_values(_TILED, raw)
    vision = dict(raw.get("vision_config") or {})
    sides = {key: side_of(vision[key]) for key in ("image_size", "patch_size") if key in vision}
    config_check.check_fit({**raw, "vision_config": vision | sides})
    decoder = (raw.get("text_config") or {}).get("model_type", decoders[0])
    if decoder not in decoders:
        kind = ", a mixture of experts," if "moe" in str(decoder) else ""
        raise CheckpointError(
            f"decoder {str(decoder)[:60]!r}{kind} is not supported", fix=f"supported: {', '.join(decoders)}"
        )
