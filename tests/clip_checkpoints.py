"""A small CLIP model in the public layout, with the kind of tokenizer that the real ones have."""

import json
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from fico_export.models.parts.transformers_quiet import quiet_transformers

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
PROJECTION = 24
_PAIRS = ("w h", "t h</w>", "i n", "t h", "th e</w>", "wh a", "wha t</w>", "i s</w>", "in g</w>")


def write_clip(folder: Path, *, text=None, vision=None, seed=0, old_eos=False) -> Path:
    """Random weights of order one; `old_eos` writes the eos_token_id 2 of OpenAI's own configs."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = ByteLevel.alphabet()
    words = [*letters, *(letter + "</w>" for letter in letters), *(pair.replace(" ", "") for pair in _PAIRS)]
    vocabulary = {word: i for i, word in enumerate([*sorted(set(words)), "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair.split(" ")) for pair in _PAIRS])
    tokenizer.model_max_length = 77
    config = CLIPConfig(
        text_config=TEXT
        | {
            "vocab_size": len(vocabulary),
            "bos_token_id": vocabulary["<|startoftext|>"],
            "eos_token_id": 2 if old_eos else vocabulary["<|endoftext|>"],
        }
        | (text or {}),
        vision_config=VISION | (vision or {}),
        projection_dim=PROJECTION,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                std = 1.0 if "embed" in name else parameter[0].numel() ** -0.5
                torch.nn.init.normal_(parameter, std=std)
            elif "norm" in name:  # norms that do something, so that one left out is missed
                torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    quiet_transformers()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes):
    """Set keys of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
