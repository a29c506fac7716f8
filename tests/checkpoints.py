"""Small real checkpoints in every layout that is met in public."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fico_export.demo.checkpoint import write_random_checkpoint

VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GRID24 = {"image_size": 96, "patch_size": 4}  # 24×24 = 576 patches, as LLaVA-1.5 has


def write_tiny(folder: Path, *, vision=None, text=None, **options) -> Path:
    """64 visual tokens, two decoder layers, as transformers 5 saves it."""
    write_random_checkpoint(folder, vision=VISION | (vision or {}), text=TEXT | (text or {}), **options)
    return folder


def to_public_layout(folder: Path) -> Path:
    """Rewrite a folder as the public llava-hf checkpoints are: older key names, FP16, template and configs of old."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {public_key(key): tensor.to(torch.float16) for key, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    rope = config["text_config"].pop("rope_parameters", {})
    config["text_config"]["rope_theta"] = rope.get("rope_theta", 10000.0)
    config["torch_dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return folder


def public_key(key: str) -> str:
    """The name that a key has in the checkpoints from before transformers 5."""
    key = re.sub(r"^model\.", "", key)
    key = re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", key)
    key = re.sub(r"^language_model\.(?!model\.|lm_head)", "language_model.model.", key)
    return re.sub(r"^lm_head", "language_model.lm_head", key)
