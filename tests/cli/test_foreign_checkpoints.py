"""Folders and files that are no checkpoint to read: each is named for what it is, with its own way to one."""

import json

import pytest
from cli_tools import edit_json
from transformers import AutoConfig

ORIGIN = "that it was made from"
AUTHORS = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "hidden_size": 4096,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
}
SCRIPT = "convert_llava_weights_to_hf.py --text_model_id"


def filled(folder, names):
    """The folder with files that hold a few bytes; a name that ends in / is a folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model-q4_k_m.gguf", "README.md"], ["GGUF model of llama.cpp", ORIGIN]),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], ["pickled weights", "M.from_pretrained('IN')"]),
        (["pytorch_model.bin", "model.gguf"], ["pickled weights", "M.from_pretrained('IN')"]),
        (["training_args.bin", "optimizer.pt", "rng_state_0.pth"], ["holds no model.safetensors and no", "hf download"]),
        (["consolidated.safetensors", "params.json"], ["layout of its authors", ORIGIN]),
        (["consolidated.00.pth", "params.json"], ["layout of its authors", ORIGIN]),
        (["onnx/", "tokenizer.json"], ["an ONNX export", ORIGIN]),
        (["openvino_model.xml", "openvino_model.bin"], ["an OpenVINO export", ORIGIN]),
        (["tf_model.h5"], ["weights of TensorFlow", ORIGIN]),
        (["flax_model.msgpack"], ["weights of Flax", ORIGIN]),
        (["weights.00.npz"], ["weights of MLX", ORIGIN]),
        (["rank0.engine"], ["a TensorRT engine", ORIGIN]),
        (["zero_to_fp32.py", "latest", "global_step500/"], ["training run in pieces", "--safe_serialization"]),
        (["__0_0.distcp", ".metadata"], ["training run in pieces"]),
        (["model.fp16.safetensors"], ["'model.fp16.safetensors', and no model.safetensors", "`ln -s model.fp16.safetensors"]),
        (["model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"], ["weights of a variant", "`ln -s model.safetensors.index.fp16.json"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], ["no model.safetensors.index.json", "hf download"]),
        (["shard-00000-model-00001-of-00002.safetensors"], ["saved in pieces by several processes", "save_pretrained('OUT')"]),
        (["adapter_config.json", "adapter_model.safetensors"], ["is an adapter (LoRA), not a model", "merge_and_unload()"]),
        (["adapter_model.bin", "adapter_config.json", "non_lora_trainables.bin"], ["adapter", "merge_lora_weights.py"]),
        (["model_index.json", "unet/"], ["pipeline of diffusers"]),
        (["mm_projector.bin"], ["projector of a LLaVA", "whole model"]),
        (["manifest.json", "onnx/"], ["is a bundle", "fico run"]),
    ],
)  # fmt: skip
def test_weights_of_another_kind_are_named_beside_a_good_config(refused, checkpoint, names, words):
    (checkpoint / "model.safetensors").unlink()
    filled(checkpoint, names)

    refused("--keep", 4, model=checkpoint, words=[str(checkpoint), *words])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ["has no config.json", "checkpoint folder itself"]),
        (["tokenizer.json"], ["has no config.json", "checkpoint folder itself"]),
        (["model.safetensors"], ["has no config.json", "checkpoint folder itself"]),
        (["llava.Q4_0.gguf", "mmproj.gguf"], ["has no config.json", "GGUF model", ORIGIN]),
        (["ggml-model-f16.bin"], ["has no config.json", "GGUF model", ORIGIN]),
        (["model.pth"], ["has no config.json", "pickled weights"]),
        (["onnx/decoder.onnx"], ["has no config.json", "an ONNX export"]),
        (["model.tar.gz"], ["has no config.json", "an archive", "unpack"]),
        (["params.json", "consolidated.00.pth", "tokenizer.model"], ["layout of its authors", ORIGIN]),
        (["model_index.json", "unet/config.json"], ["pipeline of diffusers"]),
        (["adapter_config.json", "adapter_model.safetensors"], ["is an adapter", "merge_and_unload()"]),
        (["checkpoint-100/adapter_config.json"], ["checkpoint-100 is an adapter", "merge_and_unload()"]),
        (["llava/config.json"], ["a folder in it has one", "--model ", "/llava"]),
        (["checkpoint-100/config.json", "checkpoint-200/config.json"], ["2 folders in it have one", "checkpoint-100 or /"]),
        (["snapshots/0a1b/config.json"], ["a folder in it has one", "snapshots/0a1b"]),
        (["models--llava-hf--llava-1.5-7b-hf/refs/main", "version.txt"], ["cache of the hub", "--model llava-hf/llava-1.5-7b-hf"]),
    ],
)  # fmt: skip
def test_a_folder_without_a_config_is_named_for_what_it_is(refused, tmp_path, names, words):
    folder = tmp_path / "given"
    folder.mkdir()

    refused("--keep", 4, model=filled(folder, names), words=[str(folder), *words])


def test_the_hubs_cache_of_a_model_points_at_the_snapshot_of_main(refused, tmp_path):
    cache = filled(
        tmp_path / "models--a--b", ["snapshots/0001/config.json", "snapshots/0002/config.json", "blobs/"]
    )
    filled(cache, ["refs/main"])
    (cache / "refs" / "main").write_text("0002")

    refused(
        "--keep", 4, model=cache, words=["hub's cache of a model", f"--model {cache / 'snapshots' / '0002'}"]
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.gguf", b"GGUF\x03", ["a GGUF model", ORIGIN]),
        ("sha256-6a0746a1ec1a", b"GGUF\x03", ["a GGUF model", ORIGIN]),
        ("pytorch_model.bin", b"PK", ["pickled weights", "M.from_pretrained('IN')"]),
        ("model.pth", b"PK", ["pickled weights"]),
        ("model.onnx", b"\x08", ["an ONNX export", ORIGIN]),
        ("model.engine", b"ftrt", ["a TensorRT engine", ORIGIN]),
        ("llava.tar.gz", b"\x1f\x8b", ["an archive", "unpack it"]),
        ("model.safetensors", b"\x08", ["a file of a checkpoint", "the folder, the one with config.json"]),
        ("notes.txt", b"", ["is a file", "the one with config.json"]),
    ],
)  # fmt: skip
def test_a_file_in_the_place_of_a_folder_is_named_for_what_it_is(refused, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    words = [word.replace("the folder, the one", "the checkpoint's folder, the one") for word in words]

    refused("--keep", 4, model=tmp_path / name, words=[str(tmp_path / name), *words])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_a_checkpoint_points_at_its_folder(refused, checkpoint, name):
    refused("--keep", 4, model=checkpoint / name, words=["a file of a checkpoint", f"--model {checkpoint}\n"])


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_link_to_weights_that_are_gone_is_named(refused, checkpoint, name):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).symlink_to("../../blobs/gone")

    refused(
        "--keep",
        4,
        model=checkpoint,
        words=[f"{checkpoint / name} is a link to a file that is gone", "download"],
    )


def test_an_adapter_names_its_base_in_the_command_that_merges_it(refused, tmp_path):
    filled(tmp_path, ["adapter_model.safetensors"])
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"})
    )

    refused(
        "--keep",
        4,
        model=tmp_path,
        words=["is an adapter (LORA) for llava-hf/llava-1.5-7b-hf", "A.from_pretrained(M.from_pretrained('llava-hf/llava-1.5-7b-hf'), 'IN')"],
    )  # fmt: skip


@pytest.mark.parametrize("base", ["x'); import os; os.system('id", 3, None, "a\x1b[2J", "`id`", "x" * 500])
def test_nothing_from_an_adapters_config_gets_into_a_command_but_a_name(refused, tmp_path, base):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))

    refused("--keep", 4, model=tmp_path, words=["M.from_pretrained('BASE')"])


@pytest.mark.parametrize(
    "config",
    [
        {"base_model_name_or_path": "liuhaotian/llava-v1.5-13b"},
        {
            "base_model_name_or_path": "/models/mine",
            "auto_mapping": {"base_model_class": "LlavaLlamaForCausalLM"},
        },
    ],
)
def test_an_adapter_of_a_llava_in_its_authors_layout_is_not_merged_into_random_weights(
    refused, tmp_path, config
):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))

    refused(
        "--keep",
        4,
        model=tmp_path,
        words=["authors' layout", "merge_lora_weights.py", "convert_llava_weights_to_hf"],
    )


def test_an_adapter_beside_the_weights_is_not_left_out_without_a_word(refused, checkpoint):
    filled(checkpoint, ["adapter_config.json"])

    refused(
        "--keep",
        4,
        model=checkpoint,
        words=["an adapter (adapter_config.json) beside its weights", "merge it"],
    )


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, ["(awq, 4 bits)", "--calibrate FILE"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["(gptq, 4 bits)", "--precision int4"]),
        ({"quantization_config": {"load_in_4bit": True}}, ["(bitsandbytes, 4 bits)", 'remove "quantization_config"']),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, ["(bitsandbytes, 8 bits)"]),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, ["(compressed-tensors)"]),
        ({"compression_config": {"format": "int-quantized"}}, ["(compression_config)"]),
        ({"quantization_config": {"quant_method": "fp8"}}, ["(fp8)", "--precision fp16"]),
        ({"quantization_config": {"quant_algo": "NVFP4", "producer": {"name": "modelopt"}}}, ["(NVFP4)"]),
        ({"quantization_config": {"quant_method": "hqq"}}, ["(hqq)"]),
        ({"quantization_config": {"quant_method": "aqlm"}}, ["(aqlm)"]),
        ({"quantization_config": {"quant_method": "torchao"}}, ["(torchao)"]),
        ({"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 4}}, ["(MLX)"]),
        ({"quantization_config": {"quant_method": ["awq"]}}, ["(quantization_config)"]),
        ({"quantization_config": 3}, ["(quantization_config)"]),
        ({"text_config__quantization_config": {"quant_method": "gptq"}}, ["(gptq)"]),
        ({"vision_config__quantization_config": {"quant_method": "gptq"}}, ["(gptq)"]),
    ],
)  # fmt: skip
def test_a_config_that_says_quantized_is_named_so(refused, checkpoint, packed, words):
    edit_json(checkpoint / "config.json", **packed)

    refused(
        "--keep",
        4,
        model=checkpoint,
        words=[
            "config.json says that the weights are quantized",
            "the checkpoint before it was quantized",
            *words,
        ],
    )


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json", "quant_config.json"])
def test_a_file_that_only_quantizers_write_says_quantized(refused, checkpoint, name):
    filled(checkpoint, [name])

    refused(
        "--keep", 4, model=checkpoint, words=[f"{name} says that the weights are quantized", "before it was"]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ["LlavaLlamaForCausalLM", "--model llava-hf/llava-1.5-7b-hf", SCRIPT, "--vision_model_id openai/clip-vit-large-patch14-336"]),
        ({"model_type": "llava_llama"}, [SCRIPT]),
        ({"architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral"}, [f"{SCRIPT} mistralai/Mistral-7B-v0.1"]),
        ({"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen", "mm_vision_tower": "google/siglip-so400m-patch14-384"},
         [f"{SCRIPT} Qwen/Qwen1.5-0.5B-Chat", "--vision_model_id google/siglip-so400m-patch14-384"]),
        ({"mm_vision_tower": "/home/me/clip; rm -rf ~"}, ["--vision_model_id openai/clip-vit-large-patch14-336"]),
        ({"architectures": ["LlavaMptForCausalLM"], "model_type": "llava_mpt"}, ["no conversion is known", "llava-hf/llava-1.5-7b-hf"]),
        ({"mm_projector_type": "linear"}, ["no conversion is known"]),
        ({"architectures": ["BunnyPhiForCausalLM"], "model_type": "bunny-phi"}, ["no conversion is known"]),
        ({"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}, ["LLaVA-NeXT (1.6)", "llava-v1.6-mistral-7b-hf"]),
        ({"_name_or_path": "SkunkworksAI/BakLLaVA-1"}, ["if it is bakllava-1 itself: --model llava-hf/bakLlava-v1-hf", SCRIPT]),
        ({"architectures": 3, "_name_or_path": 3, "mm_vision_tower": None}, ["no conversion is known"]),
    ],
)  # fmt: skip
def test_the_authors_own_layout_is_sent_to_the_converted_model(refused, tmp_path, change, words):
    (tmp_path / "config.json").write_text(json.dumps(AUTHORS | change))
    filled(tmp_path, ["pytorch_model-00001-of-00002.bin"])

    refused("--keep", 4, model=tmp_path, words=["layout of the model's authors", *words])


def test_the_authors_checkpoint_on_the_hub_is_refused_by_its_config_alone(refused, tmp_path, monkeypatch):
    cache = tmp_path / "hub" / "models--liuhaotian--llava-v1.5-13b"
    filled(cache, ["refs/main", "snapshots/0123/config.json"])
    (cache / "refs" / "main").write_text("0123")
    (cache / "snapshots" / "0123" / "config.json").write_text(json.dumps(AUTHORS))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    refused(
        "--keep",
        4,
        model="liuhaotian/llava-v1.5-13b",
        words=[
            "layout of the model's authors",
            "the same model in that layout: --model llava-hf/llava-1.5-13b-hf",
        ],
    )


@pytest.mark.parametrize(
    "model_type",
    ["qwen2_vl", "gemma3", "vipllava", "mllama"],
)
def test_other_families_say_so_and_what_is_supported(refused, tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps(AutoConfig.for_model(model_type).to_dict(), default=str))
    filled(tmp_path, ["model.safetensors"])

    refused(
        "--keep",
        4,
        model=tmp_path,
        words=[
            f"model_type '{model_type}'",
            "another family of vision-language models",
            "supported: ",
            "llava (llava-1.5-7b, ",
        ],
    )
