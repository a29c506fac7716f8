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
SIGLIP = {
    "model_type": "siglip_vision_model",
    "intermediate_size": 144,
    "image_size": 118,  # 8×8 patches and a rest, as the public towers have: 384 = 27 · 14 + 6
    "vision_use_head": False,
}
GRID24 = {"image_size": 96, "patch_size": 4}  # 24×24 = 576 patches, as LLaVA-1.5 has


def write_tiny(folder: Path, *, vision=None, text=None, **options) -> Path:
    """64 visual tokens, two decoder layers, as transformers 5 saves it."""
    write_random_checkpoint(folder, vision=VISION | (vision or {}), text=TEXT | (text or {}), **options)
    return folder


def write_siglip(folder: Path, *, vision=None, text=None, llava=None, **options) -> Path:
    """64 visual tokens of a tower without CLS, and a tied Qwen2, as the public llava-interleave checkpoints are."""
    vision, text = (
        SIGLIP | (vision or {}),
        {"model_type": "qwen2", "tie_word_embeddings": True} | (text or {}),
    )
    llava = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, **(llava or {})}
    write_tiny(folder, vision=vision, text=text, llava={"tie_word_embeddings": True, **llava}, **options)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for (
        name,
        tensor,
    ) in tensors.items():  # transformers starts these biases at zero: one left out would not show
        if "vision_tower" in name and tensor.dim() == 1:
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
        if (
            "embed_tokens" in name or "lm_head" in name
        ):  # at full size a tied head says the last token for ever
            tensor *= 0.1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    side = vision["image_size"]
    size = {"height": side, "width": side}
    half = [0.5, 0.5, 0.5]
    preprocessor = {"image_processor_type": "SiglipImageProcessor", "do_convert_rgb": None, "do_normalize": True,
                    "do_rescale": True, "do_resize": True, "image_mean": half, "image_std": half,
                    "processor_class": "LlavaProcessor", "resample": 3, "rescale_factor": 1 / 255, "size": size}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    processor = json.loads((folder / "processor_config.json").read_text())
    processor |= {"num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}
    (folder / "processor_config.json").write_text(json.dumps(processor))
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
