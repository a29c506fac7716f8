#!/usr/bin/env python3
"""The table of docs/jetson.md: what `fico plan` says of the models that people ask for, on every Jetson.

python scripts/what_fits.py
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fico_export import models
from fico_export.devices import catalog
from fico_export.errors import ConfigError
from fico_export.models.parts.family import Architecture
from fico_export.plan import planner
from fico_export.plan.planner import Request
from fico_export.plan.roofline import Range
from fico_export.reducers import DEFAULT

KEEP, ROWS = 64, 512
# What the public config.json say, without what `fico plan` does not read.
CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14}  # fmt: skip
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
          "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False}  # fmt: skip
QWEN2 = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
         "num_key_value_heads": 2, "vocab_size": 152000, "max_position_embeddings": 32768, "tie_word_embeddings": True}  # fmt: skip


def llama(hidden: int, intermediate: int, layers: int) -> dict[str, Any]:
    """A Vicuna's text_config, whose heads have 128 channels."""
    return {"model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": hidden // 128, "vocab_size": 32064, "max_position_embeddings": 4096}  # fmt: skip


def llava(text: dict[str, Any], vision: dict[str, Any], layer: int, select: str) -> dict[str, Any]:
    """A config.json."""
    return {"model_type": "llava", "image_token_index": 32000, "vision_feature_layer": layer,
            "vision_feature_select_strategy": select, "text_config": text, "vision_config": vision}  # fmt: skip


MODELS = {
    "Interleave-Qwen-0.5B": llava(QWEN2, SIGLIP, -1, "full"),
    "LLaVA-1.5-7B": llava(llama(4096, 11008, 32), CLIP, -2, "default"),
    "LLaVA-1.5-13B": llava(llama(5120, 13824, 40), CLIP, -2, "default"),
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "`--precision fp16`": {"precision": "fp16"},
    "`--precision int4`": {"precision": "int4"},
    "… `--quantize-head int4`": {"precision": "int4", "quantize_head": "int4"},
    "… `--quantize-head int4 --quantize-vision int8`": {
        "precision": "int4",
        "quantize_head": "int4",
        "quantize_vision": "int8",
    },
}
WORDS = {"fits": "fits", "may fit": "may", "does not fit": "no"}


def described(config: dict[str, Any]) -> Architecture:
    """The model of a config.json."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return models.describe(Path(folder))


def table() -> list[str]:
    """The lines of the table; what a model cannot be stored as has no line."""
    boards = [
        d for d in catalog.load().values() if d.jetpack and d.name != "agx-orin-industrial"
    ]  # as agx-orin-64gb
    boards.sort(key=lambda d: (d.memory_gb, d.name))
    head: list[str] = []
    lines = []
    for name, config in MODELS.items():
        model, asked = described(config), Request(DEFAULT, KEEP, max_context=ROWS)
        work = planner.count(model, asked)
        for flags, how in PRECISIONS.items():
            try:
                found = [planner.estimate(model, replace(asked, **how), board, work) for board in boards]
            except ConfigError:
                continue
            head = head or [f"{e.device}, {gigabytes(e.room)}" for e in found if e.room]
            verdicts = " | ".join(WORDS[e.verdict] for e in found if e.verdict)
            lines.append(f"| {name} {flags} | {gigabytes(found[0].needed)} | {verdicts} |")
    return [f"| model | needed, GB | {' | '.join(head)} |", f"|---|---|{'---|' * len(boards)}", *lines]


def gigabytes(value: Range) -> str:
    """One number where the ends are one."""
    least, most = f"{value.least / 1e9:.1f}", f"{value.most / 1e9:.1f}"
    return least if least == most else f"{least}–{most}"


if __name__ == "__main__":
    print("\n".join(table()))
