"""Numbers and types of config.json that no model has: an error names the key, its value and what it may be."""

import json
from pathlib import Path

import pytest
from checkpoints import write_tiny
from cli_tools import edit_json
from clip_checkpoints import write_clip
from transformers import AutoConfig, LlavaConfig

import fico_export
from fico_export import models
from fico_export.errors import CheckpointError
from fico_export.models.clip_text import open_clip

PACKAGE = Path(fico_export.__file__).parent
CONFIGS = sorted([*PACKAGE.glob("models/configs/*/config.json"), PACKAGE / "demo/model/config.json"])
NO_NUMBERS = [True, "64", 2.5, [64], {"value": 64}, -1, 0, 10**12, -(2**63), 2**63 - 1]
COUNTS = {
    "text_config": [
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "vocab_size", "max_position_embeddings",
    ],
    "vision_config": [
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
        "num_channels",
    ],
}  # fmt: skip
ODD = {
    "text_config": [[], "x", 3, True, [{"hidden_size": 64}]],
    "vision_config": [[], "x", 0, False, ""],
    "text_config__num_hidden_layers": [None, 1001, 10**9, 1e9],
    "vision_config__num_hidden_layers": [None, 10**9],
    "text_config__vocab_size": [None],
    "text_config__max_position_embeddings": [None],
    "text_config__head_dim": [17],
    "text_config__num_key_value_heads": [3, 8],
    "text_config__rms_norm_eps": [-1e-6, "1e-6", None, [], 3.0],
    "vision_config__layer_norm_eps": [-1e-6, "1e-6", None, True],
    "text_config__rope_theta": [0, -1.0, "10000", [], True, 1e300],
    "text_config__rope_parameters": [[], "x", 0],
    "text_config__rope_scaling": [[], "x", 2.0, ""],
    "text_config__hidden_act": ["new", "", 3, None, ["silu"], {"name": "silu"}],
    "vision_config__hidden_act": ["new", None, []],
    "projector_hidden_act": ["new", None, 0],
    "text_config__sliding_window": ["x", -1, 0, 2.5, []],
    "text_config__use_sliding_window": ["no", 3],
    "text_config__attention_bias": ["yes", 1],
    "text_config__tie_word_embeddings": ["false", 0],
    "tie_word_embeddings": ["false", 0, []],
    "multimodal_projector_bias": ["true", 1, None],
    "vision_config__image_size": [None, [28, 28], 10**5],
    "vision_config__patch_size": [None, [14, 14]],
    "vision_feature_layer": [None, True, "x", 2.5, {}, ["-2"], [[-2]], [True], [], 10**9],
    "num_labels": [10**9, "x", -1],
    "text_config__num_labels": [10**9, []],
    "vision_config__num_labels": [2**62, {}],
    "image_token_index": [None, True, "x", 2.5, -1, 10**6, 2**40, [], {}],
}  # fmt: skip
ROPES = {
    "factor": [0, -2.0, "2", [], True],
    "rope_theta": [0, -1, "x", []],
    "original_max_position_embeddings": [0, -4, 2.5, "x", []],
    "rope_type": [3, ["linear"], {}],
    "low_freq_factor": ["x", -1],
    "beta_fast": [[], 0],
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny") / "model")
    return (folder / "config.json").read_text()


@pytest.fixture
def folder(written, tmp_path):
    """A checkpoint of which only config.json is read here."""
    (tmp_path / "config.json").write_text(written)
    return tmp_path


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        models.describe(folder)
    assert caught.value.fix.strip()
    return caught.value.what


@pytest.mark.parametrize(("part", "key"), [(part, key) for part, keys in COUNTS.items() for key in keys])
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_a_count_that_is_none_names_its_key_and_value(folder, part, key, value):
    edit_json(folder / "config.json", **{f"{part}__{key}": value})

    assert f"config.json: {part}.{key} is {json.dumps(value)}, not " in refusal(folder)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ODD.items() for value in values])
def test_an_odd_value_names_its_key(folder, key, value):
    edit_json(folder / "config.json", **{key: value})

    assert f"config.json: {key.replace('__', '.')} is " in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in ROPES.items() for value in values]
)
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_an_odd_value_of_the_rotary_embeddings_names_its_key(folder, place, key, value):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4} | {key: value}
    edit_json(folder / "config.json", text_config__rope_parameters=...)
    edit_json(folder / "config.json", **{f"text_config__{place}": rope})

    assert f"text_config.{place}.{key} is {json.dumps(value)}, not " in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_config__num_attention_heads": 3}, "text_config.num_attention_heads is 3, not a divisor of hidden_size 64"),
        ({"vision_config__num_attention_heads": 3}, "vision_config.num_attention_heads is 3, not a divisor of hidden_size 64"),
        ({"text_config__num_key_value_heads": 3}, "text_config.num_key_value_heads is 3, not a divisor of num_attention_heads 4"),
        ({"vision_config__patch_size": 57}, "vision_config.patch_size is 57, not at most image_size 56"),
        ({"vision_config__image_size": 2048, "vision_config__patch_size": 1}, "vision_config.patch_size is 1, not large enough"),
        ({"text_config__head_dim": 17}, "text_config.head_dim is 17, not even"),
    ],
)  # fmt: skip
def test_sizes_that_contradict_each_other_are_named_together(folder, changes, words):
    edit_json(folder / "config.json", text_config__hidden_size=64, text_config__num_attention_heads=4)
    edit_json(folder / "config.json", text_config__head_dim=..., text_config__num_key_value_heads=...)
    edit_json(folder / "config.json", vision_config__hidden_size=64, vision_config__image_size=56)
    edit_json(folder / "config.json", **changes)

    assert words in refusal(folder)


def test_a_default_of_transformers_counts_as_if_it_were_written(folder):
    """Mistral's 8 heads of keys and values stand in no file, and 4 heads are no multiple of them."""
    edit_json(folder / "config.json", text_config__model_type="mistral", text_config__num_key_value_heads=...)

    said = refusal(folder)
    assert "text_config.num_key_value_heads is 8, not a divisor of num_attention_heads" in said


def test_the_image_token_lies_within_the_vocabulary(folder):
    size = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    edit_json(folder / "config.json", image_token_index=size)

    assert f"image_token_index is {size}, not a token of the vocabulary" in refusal(folder)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_published_configs_are_described_with_transformers_sizes(path):
    described, theirs = models.describe(path.parent), AutoConfig.from_pretrained(path.parent)
    decoder, text = described.decoder_config, theirs.text_config

    assert decoder.layers == text.num_hidden_layers
    assert decoder.hidden_size == text.hidden_size
    assert decoder.kv_heads == text.num_key_value_heads
    assert decoder.head_dim == (
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    )
    side = getattr(theirs.vision_config, "image_size", 448)  # a Qwen-VL takes any: its usual one
    assert described.profile.size == (tuple(side) if isinstance(side, list) else (side, side))


@pytest.mark.parametrize(
    "key",
    ["text_config", "vision_config", "text_config__rope_scaling", "text_config__rope_parameters", "text_config__head_dim",
     "text_config__num_key_value_heads", "pad_token_id", "text_config__sliding_window"],
)  # fmt: skip
@pytest.mark.parametrize("value", [None, ...], ids=["null", "absent"])
def test_what_transformers_takes_as_null_or_absent_gets_its_default(folder, key, value):
    edit_json(folder / "config.json", **{key: None})
    edit_json(folder / "config.json", **{key: value})
    theirs = LlavaConfig.from_dict(json.loads((folder / "config.json").read_text())).text_config

    decoder = models.describe(folder).decoder_config
    assert (decoder.layers, decoder.heads) == (theirs.num_hidden_layers, theirs.num_attention_heads)
    assert (decoder.kv_heads, decoder.head_dim) == (theirs.num_key_value_heads, theirs.head_dim)


@pytest.fixture(scope="module")
def clip_written(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_config", []),
        ("vision_config", "x"),
        ("text_config__num_hidden_layers", 10**9),
        ("text_config__hidden_size", "64"),
        ("text_config__num_attention_heads", 3),
        ("text_config__vocab_size", -1),
        ("text_config__eos_token_id", [2]),
        ("text_config__max_position_embeddings", 2**40),
        ("text_config__hidden_act", "new"),
        ("text_config_dict", {"num_hidden_layers": 10**9}),
        ("vision_config__hidden_size", True),
        ("vision_config__layer_norm_eps", -1.0),
        ("projection_dim", None),
        ("projection_dim", 2**60),
    ],
)
def test_an_odd_value_of_a_clip_model_names_its_key(clip_written, tmp_path, key, value):
    for file in clip_written.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(config)
    edit_json(tmp_path / "config.json", **{key: value})

    with pytest.raises(CheckpointError) as caught:
        open_clip(str(tmp_path))
    assert f"--clip-text: config.json: {key.replace('__', '.')}" in caught.value.what
    assert "published with" in caught.value.fix
