"""The files of a SmolVLM, an Idefics3 and an InternVL: key layouts, processors, and what cannot be is refused by name."""

import json
import re
import shutil

import pytest
import tiled_reference
import torch
from anyres_checkpoints import picture, rename
from cli_tools import edit_json, edit_weights
from exhaustive import exhaustive
from tiled_checkpoints import Tiled, write_tiled

from fico_export import models
from fico_export.bundle.profiles import MAX_PROFILES
from fico_export.errors import CheckpointError, ConfigError, FicoError
from fico_export.runtime.inputs.preprocess import ImageProcessor

NAN = float("nan")
HUGE = 10**30


@pytest.fixture
def copy(tiled, tmp_path):
    return shutil.copytree(tiled.folder, tmp_path / "copy")


def in_memory(key):
    """InternVL's keys as transformers 5 has them in memory; SmolVLM's are published so."""
    if key.startswith("language_model."):
        return key.removeprefix("language_model.").replace("model.", "model.language_model.", 1)
    return key if key.startswith(("model.", "lm_head.")) else f"model.{key}"


def bare(key):
    """As of the model without its head's class around it."""
    return key.removeprefix("model.")


@pytest.mark.parametrize("key_of", [lambda key: key, in_memory, bare], ids=["public", "memory", "bare"])
def test_keys_of_every_layout_are_read(tiled, copy, key_of):
    rename(copy, key_of)
    found, known = models.load(copy), tiled.model

    assert found.checkpoint.tensors.keys() == known.checkpoint.tensors.keys() == known.shapes.keys()
    for name in known.shapes:
        assert torch.equal(found.checkpoint.load(name), known.checkpoint.load(name)), name


def test_keys_in_memory_are_those_that_transformers_has(tiled):
    stored = {stored.key for stored in tiled.model.checkpoint.tensors.values()}

    assert {in_memory(key) for key in stored} == tiled.theirs.model.state_dict().keys()
    assert (stored == tiled.theirs.model.state_dict().keys()) == (tiled.name == "smolvlm")


def test_a_processor_as_transformers_5_saves_it_is_read(tiled, copy):
    """The image processor stands in processor_config.json, and has no file of its own."""
    tiled.theirs.processor.image_processor.save_pretrained(copy)
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    edit_json(copy / "processor_config.json", image_processor=settings)
    found = models.load(copy)

    assert found.layout == tiled.model.layout
    assert found.files().preprocessor == settings


def test_a_processor_without_a_name_is_the_one_that_transformers_takes(tiled, copy):
    edit_json(copy / "preprocessor_config.json", image_processor_type=...)
    expected = {"smolvlm": "SmolVLMImageProcessor", "internvl": "GotOcr2ImageProcessor"}[tiled.name]

    assert models.load(copy).files().preprocessor["image_processor_type"] == expected


def test_the_settings_of_a_video_processor_are_not_taken_for_an_images(tiled, copy):
    edit_json(copy / "preprocessor_config.json", image_processor_type=..., video_processor_type="SmolVLMVideoProcessor")  # fmt: skip

    with pytest.raises(ConfigError, match=r"is of a video processor \('SmolVLM"):
        ImageProcessor.from_config(models.load(copy).files().preprocessor)


@pytest.mark.parametrize(
    ("name", "part", "named"),
    [
        ("smolvlm", "connector.modality_projection.proj.weight", "multi_modal_projector.linear.weight"),
        ("smolvlm", "vision_model.post_layernorm.bias", "multi_modal_projector.norm.bias"),
        ("smolvlm", "encoder.layers.2.mlp.fc1.bias", "layers.2.mlp.fc1.bias"),
        ("internvl", "layer.3.lambda_1", "layers.3.lambda_1"),
        ("internvl", "layer.0.lambda_2", "layers.0.lambda_2"),
        ("internvl", "embeddings.cls_token", "embeddings.cls_token"),
        ("internvl", "multi_modal_projector.layer_norm.weight", "layer_norm.weight"),
    ],
)
def test_a_missing_tensor_is_named(tileds, tmp_path, name, part, named):
    folder = shutil.copytree(tileds(name).folder, tmp_path / "copy")
    edit_weights(folder, lambda tensors: {k: tensor for k, tensor in tensors.items() if not k.endswith(part)})

    with pytest.raises(CheckpointError, match=rf"no tensor '.*{re.escape(named)}'"):
        models.load(folder)


def test_an_extra_tensor_is_named_and_one_that_masks_patches_is_not(tileds, tmp_path):
    folder = shutil.copytree(tileds("internvl").folder, tmp_path / "copy")
    edit_weights(
        folder, lambda tensors: {**tensors, "vision_tower.embeddings.mask_token": torch.zeros(1, 1, 64)}
    )
    models.load(folder)
    edit_weights(folder, lambda tensors: {**tensors, "vision_tower.layernorm.weight": torch.ones(64)})

    with pytest.raises(CheckpointError, match=r"a tensor 'vision_tower\.layernorm\.weight'"):
        models.load(folder)


@pytest.mark.parametrize(
    ("folder", "words"),
    [("InternVL3-1B", "OpenGVLab/InternVL3-1B-hf"), ("InternVL3_5-8B", "InternVL3_5-8B-HF"), ("mine", "-hf")],
)
def test_internvl_of_its_authors_is_told_of_the_same_in_transformers_layout(tmp_path, folder, words):
    (tmp_path / folder).mkdir()
    content = {
        "model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "vision_config": {}, "llm_config": {},
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
    }  # fmt: skip
    (tmp_path / folder / "config.json").write_text(json.dumps(content))

    with pytest.raises(CheckpointError, match="layout of the model's authors") as raised:
        models.load(tmp_path / folder)
    assert words in raised.value.fix
    assert "LLaVA" not in raised.value.fix


BOTH = [
    ({"text_config__model_type": "qwen3_moe"}, ["'qwen3_moe'", "a mixture of experts", "qwen2"]),
    ({"text_config__model_type": "gpt_oss"}, ["'gpt_oss'", "supported: "]),
    ({"image_token_id": 9999}, ["image_token_id is 9999", "vocab_size"]),
    ({"image_token_id": 5}, ["image token id 5", "tokenizer.json"]),
    ({"vision_config__num_attention_heads": 5}, ["num_attention_heads is 5", "hidden_size 64"]),
    ({"vision_config__num_hidden_layers": HUGE}, ["num_hidden_layers", "1 … 1000"]),
    ({"vision_config__hidden_act": "swish2"}, ["hidden_act", "gelu"]),
    ({"vision_config": [1]}, ["vision_config", "object"]),
    ({"vision_config__patch_size": 0}, ["patch_size is 0"]),
    ({"vision_config__image_size": [64, 32]}, ["image_size is [64, 32]", "two equal"]),
    ({"vision_config__image_size": [64, 64, 64]}, ["image_size is [64, 64, 64]"]),
    ({"vision_config__image_size": []}, ["image_size is []"]),
    ({"vision_config__patch_size": 7, "vision_config__image_size": 8192}, ["patches"]),
    ({"vision_config__layer_norm_eps": NAN}, ["NaN is no JSON number"]),
]
SMOLVLM = [
    ({"scale_factor": 3}, ["8 patches a side", "cells of 3"]),
    ({"scale_factor": 0}, ["scale_factor is 0"]),
    ({"scale_factor": [2, 2]}, ["scale_factor is [2, 2]"]),
    ({"vision_config__image_size": 80, "vision_config__patch_size": 80}, ["1 patches a side"]),
]
INTERNVL = [
    ({"downsample_ratio": 1 / 3}, ["8 patches a side", "cells of 3"]),
    ({"downsample_ratio": 0.4}, ["downsample_ratio is 0.4", "1 over"]),
    ({"downsample_ratio": [0.5]}, ["downsample_ratio is [0.5]"]),
    ({"downsample_ratio": HUGE}, ["downsample_ratio"]),
    ({"vision_config__use_mean_pooling": False}, ["use_mean_pooling False", "True"]),
    ({"vision_config__use_absolute_position_embeddings": False}, ["use_absolute_position_embeddings False"]),
    ({"vision_config__norm_type": "batch_norm"}, ["norm_type 'batch_norm'", "layer_norm, rms_norm"]),
    ({"vision_config__use_qk_norm": "yes"}, ["use_qk_norm", "true or false"]),
    ({"vision_feature_layer": -2}, ["vision_feature_layer -2", "-1"]),
    ({"vision_feature_layer": [-1, -2]}, ["vision_feature_layer [-1, -2]"]),
    ({"vision_feature_select_strategy": "full"}, ["vision_feature_select_strategy 'full'", "default"]),
]


def cases(smolvlm, internvl, both=()):
    return [
        (name, changes, words)
        for name, own in (("smolvlm", smolvlm), ("internvl", internvl))
        for changes, words in (*both, *own)
    ]


@pytest.mark.parametrize(("name", "changes", "words"), cases(SMOLVLM, INTERNVL, BOTH))
def test_a_config_that_cannot_be_is_refused_by_name(tileds, tmp_path, name, changes, words):
    folder = shutil.copytree(tileds(name).folder, tmp_path / "copy")
    edit_json(folder / "config.json", **changes)

    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    said = f"{raised.value} {raised.value.fix}"
    assert all(word in said for word in words), said
    assert raised.value.fix


SMOLVLM_PROCESSOR = [
    ({"max_image_size": {"longest_edge": 32}}, ["max_image_size is 32", "config.json makes it 64"]),
    ({"max_image_size": {"height": 64}}, ["max_image_size", "longest_edge"]),
    ({"size": {"longest_edge": 255}}, ["longest edge is 255", "even"]),
    ({"size": {"longest_edge": 5000}}, ["longest edge is 5000", "4096"]),
    ({"size": {"longest_edge": 4096}}, ["size makes an image over 256 tiles"]),
    ({"size": {"longest_edge": NAN}}, ["NaN is no JSON number"]),
    ({"size": {"shortest_edge": 256}}, ["size", "longest_edge"]),
    ({"size": HUGE}, ["size"]),
    ({"size": [256]}, ["size is [256]"]),
    ({"do_resize": False}, ["do_resize is false"]),
    ({"do_image_splitting": "no"}, ["do_image_splitting"]),
]
INTERNVL_PROCESSOR = [
    ({"size": {"height": 112, "width": 56}}, ["size is {'height': 112, 'width': 56}", "112 by 112"]),
    ({"size": {"shortest_edge": 112}}, ["size", "112 by 112"]),
    ({"size": [112, 112]}, ["size is [112, 112]"]),
    ({"max_patches": HUGE}, ["max_patches is 1000000", "1 … 255"]),
    ({"max_patches": 0}, ["max_patches is 0"]),
    ({"max_patches": True}, ["max_patches is True"]),
    ({"min_patches": 13}, ["max_patches is 12, not 13 … 255"]),
    ({"min_patches": -1}, ["min_patches is -1"]),
    ({"resample": 9}, ["resample is 9"]),
]


@pytest.mark.parametrize(("name", "changes", "words"), cases(SMOLVLM_PROCESSOR, INTERNVL_PROCESSOR))
def test_a_processor_that_cannot_be_is_refused_by_name(tileds, tmp_path, name, changes, words):
    folder = shutil.copytree(tileds(name).folder, tmp_path / "copy")
    edit_json(folder / "preprocessor_config.json", **changes)

    with pytest.raises(FicoError) as raised:
        ImageProcessor.from_config(models.load(folder).files().preprocessor)
    said = f"{raised.value} {raised.value.fix}"
    assert all(word in said for word in words), said
    assert raised.value.fix


@pytest.mark.parametrize("value", [17, 0, "16"])
def test_a_processor_that_shows_a_tile_by_other_tokens_is_refused(tiled, copy, value):
    edit_json(copy / "processor_config.json", **{tiled.kind.length: value})

    with pytest.raises(
        CheckpointError, match=rf"{tiled.kind.length} is {value!r}, and config.json makes it 16"
    ):
        models.load(copy)


@pytest.mark.parametrize("key", ["length", "size"])
def test_what_a_processor_does_not_say_is_what_the_model_needs(tiled, copy, key):
    if key == "length":
        edit_json(copy / "processor_config.json", **{tiled.kind.length: ...})
    else:
        edit_json(copy / "preprocessor_config.json", size=...)
    assert models.load(copy).layout == tiled.model.layout


@pytest.mark.parametrize(("most", "count"), [(40, 158), exhaustive(255, 1457)])
def test_as_many_grids_as_a_processor_may_name_are_a_bundles(tileds, tmp_path, most, count):
    """More than any published model has."""
    folder = shutil.copytree(tileds("internvl").folder, tmp_path / "copy")
    edit_json(folder / "preprocessor_config.json", max_patches=most)

    assert len(Tiled("internvl", folder).shaped().profiles) == count <= MAX_PROFILES


def test_a_processor_that_splits_nothing_makes_one_tile(tileds, tmp_path):
    folder = shutil.copytree(tileds("smolvlm").folder, tmp_path / "copy")
    edit_json(folder / "preprocessor_config.json", do_image_splitting=False)
    layout = Tiled("smolvlm", folder).layout()

    assert layout.features((200, 150)) == 16
    assert [profile.name for profile in Tiled("smolvlm", folder).shaped().profiles] == ["1"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_tower_of_other_norms_is_transformers_tower(tmp_path, bias):
    """Of the largest InternVL: norms of queries and keys, no mean is taken off, and no bias of theirs."""
    vision = {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": bias, "layer_norm_eps": 1e-3}
    tiled = Tiled("internvl", write_tiled(tmp_path, "internvl", vision))
    tiles = tiled.theirs.pixels(picture(200, 150, 6))[:2]
    with torch.inference_mode():
        found, _ = tiled.module("1")(torch.from_numpy(tiles))
        merged, index = tiled.module("1", "tome", 9)(torch.from_numpy(tiles))
    expected, cells = tiled_reference.tome(tiled.theirs, tiles[0], 9)

    torch.testing.assert_close(found, torch.from_numpy(tiled.theirs.features(tiles)), atol=2e-5, rtol=0)
    assert index[0].tolist() == cells.tolist()
    torch.testing.assert_close(merged[0], torch.from_numpy(expected), atol=5e-5, rtol=0)


def test_a_tokenizer_without_a_token_around_tiles_is_refused(tiled, copy):
    token = {"smolvlm": "<row_1_col_2>", "internvl": "</img>"}[tiled.name]
    path = copy / "tokenizer.json"
    path.write_text(path.read_text().replace(token, "<another>"))

    with pytest.raises(CheckpointError, match=f"has no token '{token}', which the model puts around"):
        models.load(copy)
