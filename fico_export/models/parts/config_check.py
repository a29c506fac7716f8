"""What a config.json may say: numbers within bounds, of the right type, and at one with each other.

It is asked before transformers sees the file, which builds lists of a billion layers and names classes of its own in errors.
An absent key is right, as transformers has a default for it; null is right where transformers takes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fico_export.errors import CheckpointError, FicoError
from fico_export.models.activations import ACTIVATIONS

FIX = "use the config.json that was published with this checkpoint"
PARTS = ("text_config", "vision_config")
_MAX_PATCHES = 2**14  # a side of 128 patches


def must_be(words: str, right: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """A validator; `words` are what a wrong value is not."""

    def check(value: Any) -> Any:
        if not right(value):
            raise ValueError(words)
        return value

    return check


def whole(least: int, most: int) -> PlainValidator:
    """A validator of whole numbers in a range, its ends among them."""
    return PlainValidator(
        must_be(f"{least} … {most}", lambda value: type(value) is int and least <= value <= most)
    )


def _number(most: float, *, zero: bool = False) -> PlainValidator:
    """Of numbers above 0, or from 0 on; NaN is in no range."""
    words = f"a number {'of 0 …' if zero else 'above 0, up to'} {most:g}"
    return PlainValidator(
        must_be(
            words,
            lambda value: type(value) in (int, float) and (0 < value <= most or (zero and value == 0)),
        )
    )


def _layers_joined(value: Any) -> bool:
    layers = value if isinstance(value, list) else [value]
    return 1 <= len(layers) <= 64 and all(type(layer) is int and abs(layer) <= 1000 for layer in layers)


def _pairs_of_sides(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= 64
        and all(
            isinstance(pair, list)
            and len(pair) == 2
            and all(type(side) is int and 1 <= side <= 2**13 for side in pair)
            for pair in value
        )
    )


OBJECT = BeforeValidator(must_be("an object", lambda value: isinstance(value, dict)))

# Each bound is several times the largest that is published.
Layers = Annotated[int, whole(1, 1000)]
Labels = Annotated[int, whole(0, 10_000)]  # of a classifier: transformers makes a name of each
Channels = Annotated[int, whole(1, 2**16)]
Inner = Annotated[int, whole(1, 2**19)]
Heads = Annotated[int, whole(1, 2**10)]
HeadDim = Annotated[int, whole(2, 2**12)]
Vocabulary = Annotated[int, whole(1, 2**22)]
Token = Annotated[int, whole(0, 2**22 - 1)]
Context = Annotated[int, whole(1, 2**27)]
Pixels = Annotated[int, whole(1, 2**13)]
Rgb = Annotated[int, PlainValidator(must_be("3: red, green and blue", lambda value: value == 3))]
Epsilon = Annotated[float, _number(1, zero=True)]
Theta = Annotated[float, _number(1e15)]
Factor = Annotated[float, _number(1e9)]
Weight = Annotated[float, _number(1e9, zero=True)]
Switch = Annotated[bool, PlainValidator(must_be("true or false", lambda value: isinstance(value, bool)))]
Name = Annotated[str, PlainValidator(must_be("a name", lambda value: isinstance(value, str)))]
Activation = Annotated[
    str,
    PlainValidator(
        must_be(
            f"one of {', '.join(sorted(ACTIVATIONS))}",
            lambda value: isinstance(value, str) and value in ACTIVATIONS,
        )
    ),
]
LayersJoined = Annotated[
    Any, PlainValidator(must_be("the number of a layer, or a list of them", _layers_joined))
]

Pinpoints = Annotated[
    Any,
    PlainValidator(
        must_be(
            "a list of 1 to 64 pairs of height and width",
            lambda value: value is None or _pairs_of_sides(value),
        )
    ),
]


class _Rope(TypedDict, total=False):
    type: Name | None
    rope_type: Name | None
    rope_theta: Theta | None
    factor: Factor | None
    original_max_position_embeddings: Context | None
    low_freq_factor: Factor | None
    high_freq_factor: Factor | None
    attention_factor: Factor | None
    beta_fast: Factor | None
    beta_slow: Factor | None
    mscale: Weight | None
    mscale_all_dim: Weight | None
    partial_rotary_factor: Factor | None
    truncate: Switch | None


Rope = Annotated[_Rope, OBJECT] | None


class _Stack(TypedDict, total=False):
    num_labels: Labels
    hidden_size: Channels
    intermediate_size: Inner
    num_hidden_layers: Layers
    num_attention_heads: Heads
    hidden_act: Activation
    layer_norm_eps: Epsilon


class _Decoder(_Stack, total=False):
    num_key_value_heads: Heads | None
    head_dim: HeadDim | None
    vocab_size: Vocabulary
    max_position_embeddings: Context
    rms_norm_eps: Epsilon
    rope_theta: Theta | None
    rope_scaling: Rope
    rope_parameters: Rope
    sliding_window: Context | None
    use_sliding_window: Switch | None
    attention_bias: Switch | None
    mlp_bias: Switch | None
    tie_word_embeddings: Switch | None


class _Tower(_Stack, total=False):
    image_size: Pixels
    patch_size: Pixels
    num_channels: Rgb


class _ClipText(_Stack, total=False):
    vocab_size: Vocabulary
    max_position_embeddings: Annotated[int, whole(1, 2**16)]
    eos_token_id: Token


Decoder = Annotated[_Decoder, OBJECT]
Tower = Annotated[_Tower, OBJECT] | None
ClipText = Annotated[_ClipText, OBJECT] | None


class _Llava(TypedDict, total=False):
    num_labels: Labels
    text_config: Decoder | None
    vision_config: Tower
    image_token_index: Token
    image_token_id: Token
    vision_feature_layer: LayersJoined
    projector_hidden_act: Activation
    multimodal_projector_bias: Switch
    image_grid_pinpoints: Pinpoints
    tie_word_embeddings: Switch | None


class _Clip(TypedDict, total=False):
    num_labels: Labels
    text_config: ClipText
    vision_config: Tower
    text_config_dict: ClipText  # of older files, and counts before text_config
    vision_config_dict: Tower
    projection_dim: Channels


_LLAVA, _CLIP = TypeAdapter(_Llava), TypeAdapter(_Clip)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Names config.json in whatever transformers, a module or our arithmetic raises over one of its values.

    Args:
        name: of the family.
    """
    try:
        yield
    except FicoError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"config.json describes no {name} model: {type(error).__name__}: {' '.join(str(error).split())}",
            fix=FIX,
        ) from error


def check_parts(config: Mapping[str, Any]) -> None:
    """Refuse a config.json of a model of parts where one of them is no object.

    Raises:
        CheckpointError: naming it.
    """
    for part in PARTS:
        if not isinstance(config.get(part), dict | None):
            raise _wrong(part, config[part], "an object")


def check_llava(config: Mapping[str, Any]) -> None:
    """Refuse a LLaVA's config.json with a value that no model has.

    Raises:
        CheckpointError: naming the key, its value and what it may be.
    """
    check_values(_LLAVA, config)
    check_fit(config)


def check_clip(config: Mapping[str, Any]) -> None:
    """Refuse a CLIP model's config.json with a value that no model has; errors as for `check_llava`."""
    check_values(_CLIP, config)
    check_fit(config)


def check_fit(config: Mapping[str, Any]) -> None:
    """Refuse sizes that contradict each other, as far as they are given.

    Args:
        config: content of a config.json, every value right by itself.

    Raises:
        CheckpointError: naming the keys and their values.
    """
    for part in PARTS:
        values = config.get(part) or {}
        _check_heads(part, values)
        image, patch = values.get("image_size"), values.get("patch_size")
        if image and patch and patch > image:
            raise _wrong(f"{part}.patch_size", patch, f"at most image_size {image}")
        if image and patch and (image // patch) ** 2 > _MAX_PATCHES:
            what = f"large enough: image_size {image} is at most {_MAX_PATCHES} patches"
            raise _wrong(f"{part}.patch_size", patch, what)
    vocabulary = (config.get("text_config") or {}).get("vocab_size")
    for key in ("image_token_index", "image_token_id"):
        if vocabulary and config.get(key, 0) >= vocabulary:
            expected = f"a token of the vocabulary: text_config.vocab_size is {vocabulary}"
            raise _wrong(key, config[key], expected)


def _check_heads(part: str, values: Mapping[str, Any]) -> None:
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    kv_heads, head_dim = values.get("num_key_value_heads"), values.get("head_dim")
    if heads and kv_heads and heads % kv_heads:
        expected = f"a divisor of num_attention_heads {heads}"
        raise _wrong(f"{part}.num_key_value_heads", kv_heads, expected)
    if hidden and heads and not head_dim:
        if hidden % heads:
            raise _wrong(f"{part}.num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
        head_dim = hidden // heads
    if part == "text_config" and head_dim and head_dim % 2:
        raise _wrong(f"{part}.head_dim", head_dim, "even, as rotary embeddings turn channels in pairs")


def check_values(adapter: TypeAdapter[Any], config: Mapping[str, Any]) -> None:
    """Refuse a value that `adapter` does not take.

    Raises:
        CheckpointError: naming the key, its value and what it may be.
    """
    try:
        adapter.validate_python(config)
    except ValidationError as failure:
        first = failure.errors()[0]
        expected = first.get("ctx", {}).get("error", first["msg"])
        raise _wrong(".".join(map(str, first["loc"])), first["input"], str(expected)) from failure


def _wrong(key: str, value: Any, expected: str) -> CheckpointError:
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
    return CheckpointError(f"config.json: {key} is {shown}, not {expected}", fix=FIX)
