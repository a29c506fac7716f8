"""config.json, checked before anything is made of it: types and ranges of every number that a module or a plan is made from.

A config is as a stranger wrote it: 10⁹ layers would be made one by one, and `true` counts as a width of 1. What is not named here
is passed over, for transformers or a family to judge.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fico_export import tables
from fico_export.errors import CheckpointError

_MOST_PATCHES = 2**16


def _between(least: int, most: int) -> Any:
    return Field(None, strict=True, ge=least, le=most)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


Layer = Annotated[int, Field(strict=True, ge=-1000, le=1000)]
Layers = Annotated[list[Layer], BeforeValidator(_listed), Field(max_length=64)]
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Flag = Annotated[bool, Field(strict=True)]
Epsilon = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Angle = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]


class _Keys(BaseModel):
    """Some keys of an object; None is what transformers' default stands for. It makes a name of each label."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_labels: int | None = _between(0, 10_000)


class _Part(_Keys):
    """A stack of layers."""

    hidden_size: int | None = _between(1, 2**17)
    intermediate_size: int | None = _between(1, 2**20)
    num_hidden_layers: int | None = _between(1, 1000)
    num_attention_heads: int | None = _between(1, 2**12)
    hidden_act: str | None = Field(None, max_length=64)

    @model_validator(mode="after")
    def _divides(self) -> _Part:
        heads, size = self.num_attention_heads, self.hidden_size
        if heads and size and not getattr(self, "head_dim", None) and size % heads:
            raise ValueError(f"num_attention_heads {heads} do not divide hidden_size {size}")
        return self


class Tower(_Part):
    """`vision_config`."""

    image_size: int | None = _between(1, 2**14)
    patch_size: int | None = _between(1, 2**12)
    num_channels: Literal[3] | None = None
    layer_norm_eps: Epsilon | None = None
    projection_dim: int | None = _between(1, 2**17)

    @model_validator(mode="after")
    def _has_patches(self) -> Tower:
        if self.image_size and self.patch_size:
            side = self.image_size // self.patch_size
            if not 1 <= side * side <= _MOST_PATCHES:
                raise ValueError(
                    f"image_size {self.image_size} has {side * side} patches of patch_size {self.patch_size}, "
                    f"not 1 to {_MOST_PATCHES}"
                )
        return self


class Rope(BaseModel):
    """`rope_parameters` or `rope_scaling`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rope_type: str | None = Field(None, max_length=64)
    rope_theta: Angle | None = None
    factor: Angle | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    original_max_position_embeddings: int | None = _between(1, 2**31)
    low_freq_factor: Number | None = None
    high_freq_factor: Number | None = None
    beta_fast: Number | None = None
    beta_slow: Number | None = None
    attention_factor: Number | None = None
    mscale: Number | None = None
    mscale_all_dim: Number | None = None


class Text(_Part):
    """`text_config`."""

    num_key_value_heads: int | None = _between(1, 2**12)
    head_dim: int | None = _between(2, 2**12)
    vocab_size: int | None = _between(1, 2**24)
    max_position_embeddings: int | None = _between(1, 2**31)
    sliding_window: int | None = _between(1, 2**31)
    use_sliding_window: Flag | None = None
    rms_norm_eps: Epsilon | None = None
    rope_theta: Angle | None = None
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
    attention_bias: Flag | None = None
    mlp_bias: Flag | None = None
    tie_word_embeddings: Flag | None = None
    layer_types: list[str] | None = Field(None, max_length=1000)

    @model_validator(mode="after")
    def _shares(self) -> Text:
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        if heads and shared and heads % shared:
            raise ValueError(f"num_key_value_heads {shared} do not divide num_attention_heads {heads}")
        size = self.head_dim or (self.hidden_size // heads if heads and self.hidden_size else None)
        if size and size % 2:
            raise ValueError(f"a head has {size} channels, which cannot be rotated in pairs")
        return self


class ClipText(_Part):
    """`text_config` of a CLIP model."""

    vocab_size: int | None = _between(1, 2**24)
    max_position_embeddings: int | None = _between(3, 2**12)
    layer_norm_eps: Epsilon | None = None
    eos_token_id: TokenId | None = None
    projection_dim: int | None = _between(1, 2**17)


class Llava(_Keys):
    """A LLaVA's config.json."""

    vision_config: Tower | None = None
    text_config: Text | None = None
    image_token_id: TokenId | None = None
    image_token_index: TokenId | None = None
    vision_feature_layer: Layers | None = None
    vision_feature_select_strategy: str | None = None
    projector_hidden_act: str | None = Field(None, max_length=64)
    multimodal_projector_bias: Flag | None = None
    tie_word_embeddings: Flag | None = None


class Clip(_Keys):
    """A CLIP model's config.json."""

    vision_config: Tower | None = None
    text_config: ClipText | None = None
    projection_dim: int | None = _between(1, 2**17)


def check_config(kind: type[Llava] | type[Clip], content: dict[str, Any]) -> None:
    """Refuse a config.json whose values cannot be a model's.

    Args:
        kind: what it should describe.
        content: of the file; or what transformers makes of it, which has the defaults of what the file leaves out.

    Raises:
        CheckpointError: naming the first such value.
    """
    name = "LLaVA" if kind is Llava else "CLIP"
    tables.checked(
        kind,
        content,
        f"config.json describes no {name} model",
        error=CheckpointError,
        fix="use the config.json that was published with this checkpoint",
    )
