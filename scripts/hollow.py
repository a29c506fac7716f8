"""Checkpoints of real shapes without weights: a header with a hole behind it, gigabytes that take no space.

Not a script: `write_methods.py` and `bench_reducers.py` trace with them. Whatever reads the weights finds zeros.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from fico_export import models
from fico_export.demo.checkpoint import write_random_checkpoint
from fico_export.models.clip_text import Clip, TextConfig
from fico_export.models.source import SourceModel
from fico_export.models.weights import Weights

VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
TEXT: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def llava_7b(folder: Path) -> SourceModel:
    """LLaVA-1.5-7B, with a small vocabulary."""
    write_random_checkpoint(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["vision_config"] |= VISION
    config["text_config"] |= TEXT
    path.write_text(json.dumps(config), encoding="utf-8")
    with torch.device("meta"):
        tensors = LlavaForConditionalGeneration(LlavaConfig.from_dict(config)).state_dict()
    _write(folder, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return models.load(folder)


def clip_l(folder: Path, llava: SourceModel) -> Clip:
    """CLIP ViT-L/14-336, or one whose tower is as wide as that of another model; its tokenizer is missing."""
    channels = llava.shapes["multi_modal_projector.linear_1.weight"][1]
    text = TextConfig(
        hidden_size=768,
        intermediate_size=3072,
        heads=12,
        activation="quick_gelu",
        norm_eps=1e-5,
        layers=12,
        context=77,
        vocab_size=49408,
        projection=768,
        eos_id=49407,
    )
    _write(folder, {})
    clip = Clip("clip-l", folder, None, Weights(folder), text, channels, 1e-5, tokenizer="")
    _write(folder, clip.shapes())
    return replace(clip, checkpoint=Weights(folder))


def _write(folder: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """model.safetensors, FP16."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
