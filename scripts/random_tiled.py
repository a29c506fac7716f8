"""SmolVLM and InternVL checkpoints with random weights at the sizes of public models, written piece by piece.

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

_TURNS = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{%- for p in m.content %}"
    "{%- if p.type == 'image' %}{{ 'IMAGE' }}{%- else %}{{ p.text }}{%- endif %}{%- endfor %}"
    "{{ '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
_ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_SMOLVLM = ("<fake_token_around_image>", "<global-img>", *_ROWS)
_INTERNVL = ("<img>", "</img>")


def write_checkpoint(folder: Path, alias: str) -> None:
    """The model of an alias, such as `smolvlm2-256m`, in FP16; memory is that of one shard."""
    folder.mkdir(parents=True)
    source = packaged(alias)
    assert source is not None, f"{alias} has no packaged config.json"
    shutil.copy(source / "config.json", folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if getattr(config, "tie_word_embeddings", False):
        shapes.pop("lm_head.weight", None)
    write_shards(folder, shapes)
    smolvlm, vision = config.model_type != "internvl", config.vision_config
    side = vision.image_size if smolvlm else vision.image_size[0]
    image, others = ("<image>", _SMOLVLM) if smolvlm else ("<IMG_CONTEXT>", _INTERNVL)
    if smolvlm:
        processor = {
            "image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 4 * side},
            "max_image_size": {"longest_edge": side}, "resample": 1, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        }  # fmt: skip
    else:
        processor = {
            "image_processor_type": "GotOcr2ImageProcessor", "size": {"height": side, "width": side}, "max_patches": 12,
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        }  # fmt: skip
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *others)
    ids = {word: len(alphabet) + i for i, word in enumerate(words)} | {image: config.image_token_id}
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)} | ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ids])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_TURNS.replace("IMAGE", image))
    for name, content in (
        ("preprocessor_config", processor),
        ("generation_config", {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}),
        ("tokenizer_config", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    ):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
