"""What a config.json describes, before any family reads it: another layout, packed weights, another kind of model.

The families read the layout of transformers with weights as they were trained. Everything else is named here, with its own way
to such a checkpoint.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fico_export.errors import CheckpointError, ConfigError

_SCRIPT = (
    "`git clone --depth 1 --branch v4.57.1 https://github.com/huggingface/transformers`, then in it "
    "`python src/transformers/models/llava/convert_llava_weights_to_hf.py --text_model_id {text} --vision_model_id {vision} "
    "--old_state_dict_id OWNER/NAME --output_hub_path OWNER/NAME-hf` (it reads from the hub and writes to it)"
)
TWINS = {
    "llava-v1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-v1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "bakllava-1": "llava-hf/bakLlava-v1-hf",
    "llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
    "llama3-llava-next-8b": "llava-hf/llama3-llava-next-8b-hf",
    "llava-next-interleave-qwen-0.5b": "llava-hf/llava-interleave-qwen-0.5b-hf",
    "llava-next-interleave-qwen-7b": "llava-hf/llava-interleave-qwen-7b-hf",
}
"""LLaVA in its authors' layout, by the last part of its name in lower case → the same one in transformers' layout."""

_INTERNVL = {
    **{f"internvl3-{size}b": f"OpenGVLab/InternVL3-{size}B-hf" for size in (1, 2, 8)},
    **{f"internvl3_5-{size}b": f"OpenGVLab/InternVL3_5-{size}B-HF" for size in (1, 2, 8)},
}
"""Likewise InternVL."""

_TEXT_MODELS = {
    "llama": "lmsys/vicuna-7b-v1.5",
    "mistral": "mistralai/Mistral-7B-v0.1",
    "qwen": "Qwen/Qwen1.5-0.5B-Chat",
}
"""Decoder in the name of a LLaVA's class → the model that the script takes the config and tokenizer of, as an example."""

_AUTHORS = re.compile(
    r"^(llava_|bunny|tinyllava|mobilevlm|imp$|llava-|mipha|vila|internvl_chat$)", re.IGNORECASE
)
_CLASS = re.compile(r"^Llava(\w*?)ForCausalLM$")


def check(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse what is not weights as they were trained, in the layout of transformers.

    Raises:
        CheckpointError: the layout is the authors' own, or the weights are quantized.
    """
    if _is_authors(config):
        raise _authors(config, folder)
    if (packed := quantization(config)) is not None:
        raise quantized(f"{folder / 'config.json'} says that the weights are quantized ({packed})", packed)
    for name in ("hf_quant_config.json", "quantize_config.json", "quant_config.json"):
        if (folder / name).is_file():
            raise quantized(f"{folder / name} says that the weights are quantized", "")


def quantization(config: Mapping[str, Any]) -> str | None:
    """How a config.json says that the weights are packed, in its own words; None where it does not."""
    parts = [config, config.get("text_config"), config.get("vision_config")]
    for part in parts:
        for key in ("quantization", "quantization_config", "compression_config"):
            packed = part.get(key) if isinstance(part, Mapping) else None
            if not packed:
                continue
            if key == "quantization":
                return "MLX"
            return _method(packed if isinstance(packed, Mapping) else {}) or key
    return None


def _method(packed: Mapping[str, Any]) -> str:
    method = packed.get("quant_method") or packed.get("quant_algo")
    if not method and (packed.get("load_in_4bit") or packed.get("load_in_8bit")):
        method = "bitsandbytes"
    bits = packed.get("bits") or packed.get("w_bit")
    if method == "bitsandbytes":
        bits = 4 if packed.get("load_in_4bit") else 8 if packed.get("load_in_8bit") else None
    if not isinstance(method, str):
        return ""
    return (
        f"{method[:40]}, {bits} bits" if isinstance(bits, int) and not isinstance(bits, bool) else method[:40]
    )


def quantized(what: str, method: str) -> CheckpointError:
    """The error for packed weights; what replaces them here depends on how they were packed."""
    name = method.lower()
    if "awq" in name:
        here = "`--precision int4 --calibrate FILE` scales and rounds them likewise (AWQ)"
    elif "fp8" in name or "8" in name or "w8a8" in name:
        here = "`--precision fp16` keeps them whole, `--precision int4` packs them"
    else:
        here = "`--precision int4` packs them"
    fix = f"give --model the checkpoint before it was quantized; {here}"
    if "bitsandbytes" in name:
        fix += '; if a fine-tune was merged and saved in FP16, remove "quantization_config" from config.json'
    return CheckpointError(what, fix=fix)


def is_authors_name(name: str) -> bool:
    """Whether a hub id or folder is called like a checkpoint in its authors' layout."""
    return _last(name) in TWINS or name.startswith("liuhaotian/")


def is_authors_class(adapter: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json says that the adapter was trained on a LLaVA in its authors' layout."""
    mapping = adapter.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    return _decoder({"architectures": [name]}) is not None


def _is_authors(config: Mapping[str, Any]) -> bool:
    if isinstance(config.get("text_config"), Mapping) and isinstance(config.get("vision_config"), Mapping):
        return False
    named = any(isinstance(key, str) and key.startswith("mm_") for key in config)
    parts = any(key in config for key in ("llm_cfg", "vision_tower_cfg"))
    model_type = config.get("model_type")
    known = (
        isinstance(model_type, str)
        and _AUTHORS.match(model_type) is not None
        and not _in_transformers(model_type)
    )
    return named or parts or known or _decoder(config) is not None


def _decoder(config: Mapping[str, Any]) -> str | None:
    """The decoder in the class of a LLaVA in its authors' layout, such as `llama`."""
    classes = config.get("architectures")
    for name in classes if isinstance(classes, list) else []:
        if isinstance(name, str) and (found := _CLASS.match(name)):
            return found[1].lower()
    return None


def _authors(config: Mapping[str, Any], folder: Path) -> CheckpointError:
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else config.get("model_type")
    what = f"{folder / 'config.json'} is in the layout of the model's authors ({str(name)[:80]}), not in that of transformers"
    tiles = config.get("mm_patch_merge_type") not in (None, "flat") or "anyres" in str(
        config.get("image_aspect_ratio")
    )
    if tiles:
        return CheckpointError(
            f"{what}; it is a LLaVA-NeXT (1.6)",
            fix="take one in that layout, such as --model llava-hf/llava-v1.6-mistral-7b-hf",
        )
    twins = {**TWINS, **_INTERNVL}
    twin = twins.get(_last(folder.name)) or twins.get(_last(folder.parent.parent.name))
    if twin is not None:
        return CheckpointError(what, fix=f"the same model in that layout: --model {twin}")
    if config.get("model_type") == "internvl_chat":
        return CheckpointError(
            what,
            fix="take one in that layout, whose name ends in -hf, such as --model OpenGVLab/InternVL3-1B-hf",
        )
    itself = "llava-v1.5-7b"  # its config.json names it; that of a fine-tune may keep the name
    itself = last if (last := _last(str(config.get("_name_or_path")))) in TWINS else itself
    text = _TEXT_MODELS.get(re.sub(r"\d.*", "", _decoder(config) or ""))
    projector, tower = config.get("mm_projector_type", "mlp2x_gelu"), str(config.get("mm_vision_tower"))
    if text is None or projector != "mlp2x_gelu" or not re.search("clip|siglip", tower, re.IGNORECASE):
        return CheckpointError(
            what, fix="no conversion is known; take a LLaVA-1.5, such as --model llava-hf/llava-1.5-7b-hf"
        )
    vision = (
        tower if re.fullmatch(r"[\w.-]+/[\w.-]+", tower, re.ASCII) else "openai/clip-vit-large-patch14-336"
    )
    return CheckpointError(
        what,
        fix=f"if it is {itself} itself: --model {TWINS[itself]}; convert a fine-tune: {_SCRIPT.format(text=text, vision=vision)}",
    )


def _last(name: str) -> str:
    """The last part of a path, a hub id, or a folder of the hub's cache, in lower case."""
    return re.split(r"[/\\]|--", name)[-1].lower()


def unsupported(
    model_type: object, config: Mapping[str, Any], place: Path, families: Mapping[str, Iterable[str]]
) -> ConfigError:
    """The error for a model type of no family, which says what it is and what is near.

    Args:
        model_type: as config.json has it.
        config: the whole content.
        place: path of the config.json.
        families: model types that are supported → names of public models.
    """
    listed = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in sorted(families.items()))
    supported = f"supported: {listed}"
    if not isinstance(model_type, str):
        classes = config.get("architectures")
        if isinstance(classes, list) and "LlavaForConditionalGeneration" in classes:
            return CheckpointError(
                f"model_type is {model_type!r} in {place}", fix='write "model_type": "llava" into it'
            )
        return CheckpointError(
            f"model_type {model_type!r} in {place} names no model",
            fix=f"use the config.json that was published with the checkpoint; {supported}",
        )
    if "auto_map" in config:
        supported = f"code that comes with a checkpoint (auto_map) is never run; {supported}"
    what, word = f"model_type {model_type[:80]!r} in {place}", _kind(model_type)
    near = difflib.get_close_matches(model_type.lower(), families, n=1, cutoff=0.8)
    if model_type == "clip":
        supported += "; --clip-text takes a CLIP model beside one of these"
    if word is not None:
        return CheckpointError(f"{what} is {word}, and not supported", fix=supported)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return CheckpointError(f"{what} is not supported", fix=hint + supported)


def _kind(model_type: str) -> str | None:
    from transformers.models.auto import modeling_auto as auto

    if "moe" in model_type:
        return "a mixture of experts"
    if model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "another family of vision-language models"
    if model_type in ("clip", "siglip", "siglip2", "clip_vision_model", "siglip_vision_model"):
        return "a vision tower without a decoder"
    if model_type in auto.MODEL_FOR_IMAGE_MAPPING_NAMES:
        return "a model of images alone, without a decoder"
    if model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "a language model without a vision tower"
    return None


def _in_transformers(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES
