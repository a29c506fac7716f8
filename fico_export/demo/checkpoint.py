"""A small LLaVA checkpoint with random weights, made on the spot: its words mean nothing, its format is the real one.

576 visual tokens, as LLaVA-1.5 has, so that budgets mean what they mean there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlavaConfig, LlavaForConditionalGeneration

from fico_export.models.parts.transformers_quiet import quiet_transformers

VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "image_size": 192,
    "patch_size": 8,
    "projection_dim": 64,
}
TEXT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 512,
}
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_WORDS = (
    "what is in this picture describe the image how many are there which colour shape and number do you see a red green "
    "blue yellow circle square triangle left right top bottom of on sign reads user assistant yes no it the answer"
)


def write_random_checkpoint(
    folder: Path,
    *,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    llava: dict[str, Any] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint as transformers saves it, with tokenizer, processor and chat template.

    Args:
        folder: where; made if missing.
        vision: changes to the vision config.
        text: changes to the decoder's config; `vocab_size` is at least 450.
        llava: changes to the outer config.
        seed: of the weights.
        dtype: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vision_config, text_config = VISION | (vision or {}), TEXT | (text or {})
    image_id = text_config["vocab_size"] - 64
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=image_id,
        pad_token_id=image_id + 1,
        image_seq_length=(vision_config["image_size"] // vision_config["patch_size"]) ** 2,
        **(llava or {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            if (
                parameter.dim() > 1
            ):  # fan-in scaling: activations of order one, so that the answer depends on the picture
                std = 1.0 if "embed" in name else parameter[0].numel() ** -0.5
                torch.nn.init.normal_(parameter, std=std)
    quiet_transformers()
    model.to(dtype).save_pretrained(folder)
    _dump(
        folder / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": image_id + 1},
    )
    write_tokenizer(folder, [_WORDS, _WORDS.upper(), "0123456789.,:;?!'\"-\n"], image_id)
    write_processor(folder, vision_config)


def write_tokenizer(folder: Path, corpus: Iterable[str], image_id: int) -> None:
    """Write a byte-fallback BPE like Llama's, with `<image>` and `<pad>` added, and LLaVA's chat template.

    Args:
        folder: of the checkpoint.
        corpus: the texts that it is trained on.
        image_id: id of `<image>`; the vocabulary below it is filled up with unused words.
    """
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Merges stay within a word and apart from punctuation, as Llama's do; so inference needs no such split.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(True),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=image_id, special_tokens=special, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(corpus, trainer)
    spec = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
    spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["content"].startswith("<0x")]
    vocabulary = spec["model"]["vocab"]
    vocabulary |= {f"<unused_{i}>": i for i in range(len(vocabulary), image_id)}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in ("<image>", "<pad>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _dump(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "legacy": False,
            "processor_class": "LlavaProcessor",
            "extra_special_tokens": {"image_token": "<image>"},
        },
    )
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")


def write_processor(folder: Path, vision: dict[str, Any]) -> None:
    """Write what an image goes through before a tower of that config, as CLIP does it."""
    side = vision["image_size"]
    _dump(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    _dump(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": "<image>",
            "patch_size": vision["patch_size"],
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
    )


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
