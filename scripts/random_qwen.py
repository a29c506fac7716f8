"""Qwen-VL checkpoints with random weights at the sizes of public models, written piece by piece.

The words mean nothing; memory and time are those of the real thing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers
from random_models import write_shards
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fico_export.models import packaged

_CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{%- for p in m.content %}"
    "{%- if p.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{%- else %}{{ p.text }}{%- endif %}{%- endfor %}"
    "{{ '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
_SPECIAL = {  # ids of the public tokenizers
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652,
    "<|vision_end|>": 151653, "<|vision_pad|>": 151654, "<|image_pad|>": 151655, "<|video_pad|>": 151656,
}  # fmt: skip


def write_checkpoint(folder: Path, alias: str) -> None:
    """The model of an alias, such as `qwen3-vl-2b`, in FP16; memory is that of one shard."""
    folder.mkdir(parents=True)
    source = packaged(alias)
    assert source is not None, f"{alias} has no packaged config.json"
    shutil.copy(source / "config.json", folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    write_shards(folder, shapes)
    qwen3 = config.model_type == "qwen3_vl"
    pixels = {"patch_size": 16 if qwen3 else 14, "temporal_patch_size": 2, "merge_size": 2}
    half, clip = [0.5] * 3, {"image_mean": [0.48145466, 0.4578275, 0.40821073]}
    norm = (
        {"image_mean": half, "image_std": half}
        if qwen3
        else clip | {"image_std": [0.26862954, 0.26130258, 0.27577711]}
    )
    _dump(
        folder / "preprocessor_config.json",
        {"image_processor_type": "Qwen2VLImageProcessor", **pixels, **norm},
    )
    _dump(folder / "generation_config.json", {"eos_token_id": [151645, 151643], "pad_token_id": 151643})
    _dump(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})  # fmt: skip
    (folder / "chat_template.jinja").write_text(_CHATML)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)} | _SPECIAL, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))


def _dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
