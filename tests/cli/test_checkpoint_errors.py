"""Checkpoints that cannot be used: each says what is wrong with it and how to get a good one, before anything is written."""

import json

import pytest
import torch
from cli_tools import edit_json, edit_weights, split_weights
from safetensors.torch import load_file

NAN = float("nan")
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"
LINEAR = "multi_modal_projector.linear_1.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"


def test_a_folder_without_a_config_is_refused(refused, tmp_path):
    refused("--keep", 4, model=tmp_path, words=["has no config.json", "checkpoint folder"])


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_config_that_is_no_json_object_is_refused(refused, checkpoint, text):
    (checkpoint / "config.json").write_text(text)

    refused("--keep", 4, model=checkpoint, words=["config.json", "download the checkpoint again"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mllama"}, ["model_type 'mllama'", "another family of vision-language models", "llava (llava-1.5-7b"]),
        ({"model_type": "llama"}, ["model_type 'llama'", "language model without a vision tower", "supported: ", "llava (llava-1.5-7b"]),
        ({"model_type": "clip"}, ["model_type 'clip'", "vision tower without a decoder", "supported: ", "llava (llava-1.5-7b"]),
        ({"model_type": "dinov2"}, ["model_type 'dinov2'", "images alone", "supported: ", "llava (llava-1.5-7b"]),
        ({"model_type": "lava"}, ["model_type 'lava' in", "did you mean 'llava'?", "supported: ", "llava (llava-1.5-7b"]),
        ({"model_type": "phi3_v", "auto_map": {"AutoConfig": "c.C"}}, ["model_type 'phi3_v'", "auto_map", "never run", "supported: ", "llava (llava-1.5-7b"]),
        ({"model_type": ...}, ["model_type is None", 'write "model_type": "llava"']),
        ({"model_type": ..., "architectures": ...}, ["model_type None", "supported: ", "llava (llava-1.5-7b"]),
        ({"model_type": 3, "architectures": 3}, ["model_type 3", "supported: ", "llava (llava-1.5-7b"]),
        ({"vision_config__model_type": "siglip2_vision_model"}, ["vision tower 'siglip2_vision_model'", "siglip_vision_model"]),
        ({"vision_config__model_type": "siglip_vision_model"}, ["'default' drops the first patch", '"full"']),
        ({"vision_config__model_type": "new_tower"}, ["vision tower 'new_tower'", "clip_vision_model"]),
        ({"text_config__model_type": "gemma"}, ["decoder 'gemma'", "llama, mistral, qwen2"]),
        ({"text_config__model_type": "new_decoder"}, ["decoder 'new_decoder'", "llama, mistral, qwen2"]),
        ({"text_config__rope_scaling": {"type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}}, ["rope_type 'longrope'", "yarn, dynamic"]),
        ({"text_config__rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, ["partial_rotary_factor 0.5", "1.0"]),
        ({"text_config__rope_scaling": {"rope_type": "new", "factor": 2.0}}, ["rope_type 'new'", "linear, llama3, yarn"]),
        ({"vision_feature_select_strategy": "cls"}, ["vision_feature_select_strategy 'cls'", "default, full"]),
        ({"vision_feature_layer": -20}, ["vision_feature_layer -20", "6 layers"]),
        ({"vision_feature_layer": []}, ["vision_feature_layer is []"]),
    ],
)  # fmt: skip
def test_what_is_not_supported_lists_what_is(refused, checkpoint, change, words):
    edit_json(checkpoint / "config.json", **change)

    refused("--keep", 4, model=checkpoint, words=words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_config": "llama"}, 'text_config is "llama", not an object'),
        ({"text_config__num_attention_heads": 0}, "text_config.num_attention_heads is 0, not 1 …"),
        ({"vision_config__image_size": "large"}, 'vision_config.image_size is "large", not 1 …'),
        ({"image_seq_length": None}, "describes no LLaVA model"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(refused, checkpoint, change, words):
    edit_json(checkpoint / "config.json", **change)

    refused("--keep", 4, model=checkpoint, words=["config.json", words, "published with"])


def test_a_config_of_another_size_names_a_tensor_and_both_shapes(refused, checkpoint):
    edit_json(checkpoint / "config.json", text_config__hidden_size=128)

    refused("--keep", 4, model=checkpoint, words=[LINEAR, "[64, 64]", "[128, 64]"])


def test_a_config_that_leaves_out_layers_is_refused(refused, checkpoint):
    edit_json(checkpoint / "config.json", text_config__num_hidden_layers=1)

    refused("--keep", 4, model=checkpoint, words=["language_model.model.layers.", "no place for"])


def test_a_missing_shard_is_named(refused, checkpoint):
    split_weights(checkpoint)
    (checkpoint / SHARD).unlink()

    refused("--keep", 4, model=checkpoint, words=[SHARD, "is missing", "download it"])


@pytest.mark.parametrize("size", [0, 5, 400_000])
def test_a_truncated_file_of_weights_is_named(refused, checkpoint, size):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])

    refused(
        "--keep",
        4,
        model=checkpoint,
        words=["model.safetensors is truncated or damaged", "download it again"],
    )


def test_a_truncated_shard_is_named(refused, checkpoint):
    split_weights(checkpoint)
    (checkpoint / SHARD).write_bytes((checkpoint / SHARD).read_bytes()[:-1])

    refused("--keep", 4, model=checkpoint, words=[f"{SHARD} is truncated or damaged", "download it again"])


def test_an_index_that_names_tensors_no_shard_holds_is_refused(refused, checkpoint):
    split_weights(checkpoint)
    index = json.loads((checkpoint / INDEX).read_text())
    index["weight_map"]["gone.weight"] = SHARD
    (checkpoint / INDEX).write_text(json.dumps(index))

    refused("--keep", 4, model=checkpoint, words=["1 tensors that no shard holds", "gone.weight", "download"])


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": [1]}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_weight_map_is_refused(refused, checkpoint, index):
    split_weights(checkpoint)
    (checkpoint / INDEX).write_text(json.dumps(index))

    refused("--keep", 4, model=checkpoint, words=[INDEX, "has no weight_map", "download"])


@pytest.mark.parametrize(
    "name", ["../tiny/model.safetensors", "/etc/passwd", "..", "", "a\0b", "b\\c", "\x1b[31m/x"]
)
def test_an_index_cannot_reach_out_of_its_folder(refused, checkpoint, name):
    split_weights(checkpoint)
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))

    refused("--keep", 4, model=checkpoint, words=[INDEX, json.dumps(name), "no name of a file"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: v for k, v in t.items() if k != LINEAR}, [f"no tensor {LINEAR!r}", "download"]),
        (lambda t: t | {LINEAR: torch.zeros(64, 63)}, ["[64, 63]", "[64, 64]"]),
        (lambda t: t | {LINEAR: torch.zeros(64, 64, dtype=torch.int8)}, ["stored as I8", "not quantized"]),
        (
            lambda t: t | {EMBEDDING.replace("weight", "scale"): torch.ones(1)},
            ["embed_tokens.scale", "no place for"],
        ),
    ],
)
def test_tensors_that_are_not_the_configs_are_refused(refused, checkpoint, change, words):
    edit_weights(checkpoint, change)

    refused("--keep", 4, model=checkpoint, words=words)


def test_pickled_weights_are_not_read_and_the_error_says_how_to_convert_them(refused, checkpoint):
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()

    refused("--keep", 4, model=checkpoint, words=["pickled", "save_pretrained('OUT')"])


def test_a_folder_without_weights_is_refused(refused, checkpoint):
    (checkpoint / "model.safetensors").unlink()

    refused("--keep", 4, model=checkpoint, words=["holds no model.safetensors"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tokenizer.json", ["has no tokenizer.json", "AutoTokenizer"]),
        ("preprocessor_config.json", ["has no preprocessor_config.json", "copy preprocessor_config.json"]),
    ],
)
def test_a_missing_text_says_where_it_comes_from(refused, checkpoint, name, words):
    (checkpoint / name).unlink()

    refused("--keep", 4, model=checkpoint, words=words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"\xff\xfe", ["tokenizer.json", "download"]),
        ("tokenizer.json", b"{}", ["image token id 448", "tokenizer.json of this checkpoint"]),
        ("tokenizer.json", b'{"added_tokens": [3]}', ["added_tokens.0 of tokenizer.json is 3", "of this checkpoint"]),
        ("tokenizer.json", b'{"added_tokens": [{"id": 448, "content": "<image>"}]}', ["tokenizer.json cannot be read"]),
        ("tokenizer_config.json", b"nope", ["tokenizer_config.json", "download"]),
        ("preprocessor_config.json", b"nope", ["preprocessor_config.json", "download"]),
        ("preprocessor_config.json", b'{"image_processor_type": "New"}', ["'New'", "CLIPImageProcessor"]),
        ("preprocessor_config.json", b'{"image_processor_type": "CLIPImageProcessor"}', ["224×224", "112×112"]),
        ("chat_template.json", b'{"chat_template": "{% if %}"}', ["the chat template cannot be read"]),
        ("chat_template.json", b'{"chat_template": [{"name": "default"}]}', ["not one text", "chat_template.jinja"]),
        ("chat_template.json", b'{"chat_template": "no picture"}', ["1 images", "shows 0"]),
        ("chat_template.jinja", b"\xff\xfe", ["chat_template.jinja", "download"]),
    ],
)  # fmt: skip
def test_a_text_that_the_runtime_could_not_use_is_refused_before_any_graph(
    refused, checkpoint, name, content, words
):
    (checkpoint / name).write_bytes(content)

    refused("--keep", 4, model=checkpoint, words=words)


def test_fp16_refuses_weights_beyond_its_range(refused, checkpoint, embedding_only):
    edit_weights(checkpoint, lambda t: t | {EMBEDDING: torch.full((512, 64), 1e6)})

    refused(
        "--keep",
        4,
        "--precision",
        "fp16",
        model=checkpoint,
        words=["embed_tokens", "FLOAT16", "--precision fp32"],
    )


def test_nan_in_the_weights_is_warned_of_and_never_passes_verification(export, fico, checkpoint, out):
    edit_weights(checkpoint, lambda t: t | {"language_model.model.norm.weight": torch.full((64,), NAN)})

    exported = export("--keep", 4, "--no-verify", model=checkpoint)
    assert exported.code == 0
    assert "warning: tensor 'language_model.norm.weight' of the checkpoint holds NaN" in exported.err

    verified = fico("verify", out, "--json")
    assert verified.code == 1
    statuses = {(check["graph"], check["metric"]): check["status"] for check in verified.json["checks"]}
    assert not verified.json["passed"]
    assert statuses["decoder_model_merged", "cosine"] == "failed"
    assert statuses["answers", "greedy tokens equal"] == "failed"

    fico("run", out, "--prompt", "hi").refuses("nan", code=1)
