"""The files of a Qwen-VL checkpoint: key layouts, nested and flat configs, and what cannot be is refused by name."""

import json
import re
import shutil

import pytest
import torch
from anyres_checkpoints import rename
from cli_tools import edit_json, edit_weights

from fico_export import models
from fico_export.errors import CheckpointError, ConfigError
from fico_export.runtime.inputs.preprocess import ImageProcessor


@pytest.fixture
def copy(qwen, tmp_path):
    return shutil.copytree(qwen.folder, tmp_path / "copy")


def in_memory(key):
    """Qwen2.5-VL's keys as transformers 5 has them in memory, and as Qwen3-VL's are published."""
    if key.startswith("model.") and not key.startswith(("model.visual.", "model.language_model.")):
        return key.replace("model.", "model.language_model.", 1)
    return f"model.{key}" if key.startswith("visual.") else key


def as_in_qwen2_5(key):
    """And the other way round."""
    return key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


@pytest.mark.parametrize(
    "key_of", [lambda key: key, in_memory, as_in_qwen2_5], ids=["public", "memory", "old"]
)
@pytest.mark.parametrize("nested", [False, True], ids=["public", "saved"])
def test_keys_and_configs_of_every_layout_are_read(qwen, copy, key_of, nested):
    """The config that transformers 5 saves has the decoder's values in text_config, and rope_parameters."""
    rename(copy, key_of)
    if nested:
        (copy / "saved_config.json").replace(copy / "config.json")
    found, known = models.load(copy), qwen.model

    assert ("text_config" in json.loads((copy / "config.json").read_text())) == (
        nested or qwen.family == "qwen3_vl"
    )
    assert found.decoder_config == known.decoder_config
    assert found.shapes == known.shapes
    assert found.checkpoint.tensors.keys() == known.checkpoint.tensors.keys() == known.shapes.keys()
    for name in known.shapes:
        assert torch.equal(found.checkpoint.load(name), known.checkpoint.load(name)), name


def test_the_public_keys_are_those_that_transformers_saves(qwen):
    keys = {stored.key for stored in qwen.model.checkpoint.tensors.values()}

    visual, language = (
        ("visual.", "model.") if qwen.family == "qwen2_5_vl" else ("model.visual.", "model.language_model.")
    )
    assert {f"{visual}patch_embed.proj.weight", f"{language}embed_tokens.weight", "lm_head.weight"} < keys
    assert all(key.startswith((visual, language, "lm_head.")) for key in keys)


@pytest.mark.parametrize(
    ("family", "part", "named"),
    [
        ("qwen3_vl", "deepstack_merger_list.1.norm.bias", "deepstack_merger_list.1.norm.bias"),
        (
            "qwen3_vl",
            "deepstack_merger_list.2.linear_fc2.weight",
            "deepstack_merger_list.2.linear_fc2.weight",
        ),
        ("qwen3_vl", "pos_embed.weight", "position_embedding.weight"),
        ("qwen2_5_vl", "merger.ln_q.weight", "multi_modal_projector.norm.weight"),
        ("qwen2_5_vl", "blocks.3.attn.qkv.bias", "layers.3.attn.qkv.bias"),
    ],
)
def test_a_missing_tensor_is_named(qwens, tmp_path, family, part, named):
    folder = shutil.copytree(qwens(family).folder, tmp_path / "copy")
    edit_weights(
        folder, lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.endswith(part)}
    )

    with pytest.raises(CheckpointError, match=rf"no tensor '.*{re.escape(named)}'"):
        models.load(folder)


@pytest.mark.parametrize(
    "key",
    [
        "visual.deepstack_merger_list.3.norm.weight",
        "visual.merger.bias",
        "language_model.layers.9.mlp.up_proj.weight",
    ],
)
def test_an_extra_tensor_is_named_with_a_way_to_leave_it_out(copy, key):
    edit_weights(copy, lambda tensors: {**tensors, f"model.{key}": torch.zeros(3)})

    with pytest.raises(
        CheckpointError, match=rf"a tensor 'model\.{re.escape(key)}' that config\.json"
    ) as raised:
        models.load(copy)
    assert "AutoModelForImageTextToText" in raised.value.fix


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mrope_section": [2, 3, 2]}, ["mrope_section", "[2, 3, 2]", "sum to {half}"]),
        ({"mrope_section": [8, 8]}, ["mrope_section", "three numbers"]),
        ({"mrope_section": ...}, ["rope_scaling", "mrope_section"]),
        ({"vision_config__out_hidden_size": 32}, ["out_hidden_size is 32", "decoder, 64"]),
        ({"vision_config__num_heads": 32}, ["num_heads is 32", "hidden_size 64"]),
        ({"vision_config__temporal_patch_size": 3}, ["patch_embed.proj.weight", "[64, 3, 2, "]),
        ({"vision_config__spatial_merge_size": 0}, ["spatial_merge_size is 0"]),
        ({"image_token_id": 9999}, ["image", "9999"]),
        ({"image_token_id": ...}, ["image token id 151655", "tokenizer.json"]),
        ({"model_type": "qwen2_vl"}, ["'qwen2_vl'", "not supported", "qwen2.5-vl-7b"]),
        ({"model_type": "qwen3_vl_moe"}, ["'qwen3_vl_moe'", "not supported", "qwen3-vl-8b"]),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_name(qwen, copy, changes, words):
    text = "rope_scaling" if qwen.family == "qwen2_5_vl" else "text_config__rope_scaling"
    edit_json(
        copy / "config.json", **{f"{text}__{k}" if k == "mrope_section" else k: v for k, v in changes.items()}
    )

    with pytest.raises(CheckpointError) as raised:
        models.load(copy)
    said = f"{raised.value} {raised.value.fix}"
    assert all(word.format(half=qwen.model.decoder_config.head_dim // 2) in said for word in words), said


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("qwen2_5_vl", {"window_size": 27}, ["window_size is 27", "28 pixels"]),
        ("qwen2_5_vl", {"fullatt_block_indexes": [1, 1]}, ["fullatt_block_indexes is [1, 1]"]),
        ("qwen3_vl", {"deepstack_visual_indexes": [1, 0, 2]}, ["[1, 0, 2]", "ascending layers of 4"]),
        ("qwen3_vl", {"deepstack_visual_indexes": [0, 1, 4]}, ["[0, 1, 4]", "ascending layers of 4"]),
        ("qwen3_vl", {"deepstack_visual_indexes": [1, 1]}, ["[1, 1]", "different layers"]),
        ("qwen3_vl", {"num_position_embeddings": 35}, ["num_position_embeddings is 35", "square"]),
    ],
)
def test_a_tower_that_cannot_be_is_refused_by_name(qwens, tmp_path, family, changes, words):
    folder = shutil.copytree(qwens(family).folder, tmp_path / "copy")
    edit_json(folder / "config.json", **{f"vision_config__{key}": value for key, value in changes.items()})

    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    assert all(word in f"{raised.value} {raised.value.fix}" for word in words), raised.value


def test_more_planes_than_the_decoder_has_layers_are_refused(qwens, tmp_path):
    folder = shutil.copytree(qwens("qwen3_vl").folder, tmp_path / "copy")
    edit_json(folder / "config.json", text_config__num_hidden_layers=2)

    with pytest.raises(
        CheckpointError, match=r"deepstack_visual_indexes is \(0, 1, 2\), not at most 2 layers"
    ):
        models.load(folder)


@pytest.mark.parametrize(("key", "value"), [("patch_size", 15), ("merge_size", 3), ("patch_size", "14")])
def test_a_processor_that_cuts_other_patches_is_refused(qwen, copy, key, value):
    edit_json(copy / "preprocessor_config.json", **{key: value})

    with pytest.raises(CheckpointError, match=f"{key} is {value!r}, and config.json makes it") as raised:
        models.load(copy).files()
    assert "of one checkpoint" in raised.value.fix


def test_a_processor_without_a_name_is_the_one_that_transformers_takes(qwen, copy):
    edit_json(copy / "preprocessor_config.json", image_processor_type=...)

    assert models.load(copy).files().preprocessor["image_processor_type"] == "Qwen2VLImageProcessor"


def test_config_json_may_name_the_processor(qwen, copy):
    edit_json(copy / "preprocessor_config.json", image_processor_type=...)
    edit_json(copy / "config.json", image_processor_type="Qwen2VLImageProcessorFast")

    assert models.load(copy).files().preprocessor["image_processor_type"] == "Qwen2VLImageProcessorFast"


def test_the_settings_of_a_video_processor_are_not_taken_for_an_images(qwen, copy):
    edit_json(copy / "preprocessor_config.json", image_processor_type=..., video_processor_type="Qwen3VLVideoProcessor")  # fmt: skip

    with pytest.raises(ConfigError, match=r"is of a video processor \('Qwen3VL") as raised:
        ImageProcessor.from_config(models.load(copy).files().preprocessor)
    assert "Qwen2VLImageProcessor" in raised.value.fix
