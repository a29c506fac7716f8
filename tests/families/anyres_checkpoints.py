"""A tiny LLaVA-NeXT checkpoint in the public layout, and transformers' own answers with it."""

import json
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

SIDE, PATCH = 56, 14  # 4×4 patches a tile
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
SPECIAL = ["<image>", "</s>", "<unk>", "<s>", "<pad>"]
STEPS = {
    "do_convert_rgb": True, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "do_center_crop": True, "do_pad": True, "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
_TEXT = "{%- for p in m.content if p.type == 'text' %}"
TEMPLATE = (  # llava-v1.6-mistral: images first, each with its line
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '[INST] ' }}"
    "{%- for p in m.content if p.type == 'image' %}{{ '<image>\\n' }}{%- endfor %}"
    f"{_TEXT}{{{{ p.text }}}}{{%- endfor %}}{{{{ ' [/INST]' }}}}"
    f"{{%- elif m.role == 'assistant' %}}{_TEXT}{{{{ ' ' + p.text + '</s>' }}}}{{%- endfor %}}{{%- endif %}}{{%- endfor %}}"
)


@cache
def tokenizer():
    """Of Llama's kind: spaces are marked, bytes are the fallback, <s> opens every text."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=first, show_progress=False, max_token_length=8
    )
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:5]
    made.train_from_iterator((f.read_text(encoding="utf-8", errors="ignore") for f in library), trainer)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def write_next(folder, *, decoder="mistral", layers=2, side=SIDE, **config):
    """Transformers' own LlavaNext classes with random weights, keys as the public checkpoints have them."""
    folder.mkdir(parents=True, exist_ok=True)
    made, pinpoints = tokenizer(), [[rows * side, columns * side] for rows, columns in GRIDS]
    text = {
        "model_type": decoder, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
        "vocab_size": -(-made.get_vocab_size() // 16) * 16, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    } | ({"sliding_window": None} if decoder == "mistral" else {})  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "image_size": side, "patch_size": PATCH, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "projection_dim": 32,
    }  # fmt: skip
    settings = {
        "model_type": "llava_next", "vision_config": vision, "text_config": text, "tie_word_embeddings": False,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu",
        "image_token_index": made.token_to_id("<image>"), "image_grid_pinpoints": pinpoints, "image_seq_length": 16,
    } | config  # fmt: skip
    parsed = transformers.AutoConfig.for_model(**settings)
    model = transformers.LlavaNextForConditionalGeneration._from_config(parsed, dtype=torch.float32)
    fill(model)
    eos = made.token_to_id("</s>")
    model.generation_config = transformers.GenerationConfig(eos_token_id=[eos], pad_token_id=eos)
    model.save_pretrained(folder)
    rename(folder, lambda key: key.replace("vision_tower.", "vision_tower.vision_model.", 1))
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    crop = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    kind = {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pinpoints}
    rules = {
        "patch_size": PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    for name, content in (
        (
            "tokenizer_config",
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096} | named,
        ),
        ("preprocessor_config", kind | crop | STEPS),
        ("processor_config", {"processor_class": "LlavaNextProcessor", "image_token": "<image>"} | rules),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def fill(model, seed=0):
    """Random weights by fan-in: with those that transformers starts with, all answers are one, whatever the image."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or "ln_q" in name:
            parameter.data = (leaf != "bias") + 0.05 * noise
        else:
            table = parameter.dim() < 2 or "embed" in name
            scale = (
                (0.1 if leaf == "bias" else 0.5)
                if table and "patch_embed" not in name
                else parameter[0].numel() ** -0.5
            )
            parameter.data = scale * noise


def rename(folder, key_of):
    tensors = {key_of(key): tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def picture(width, height, seed=0):
    """Smooth random colours: images that look different to a tower of random weights."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


class Theirs:
    """Transformers with a checkpoint: its processor, on Pillow, and its greedy answers."""

    def __init__(self, folder):
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.processor = transformers.LlavaNextProcessor(
            image_processor=transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(),
            **{
                key: value
                for key, value in json.loads((folder / "processor_config.json").read_text()).items()
                if key != "processor_class"
            },
        )

    def inputs(self, images, *texts):
        """What the model is fed: turns of the user and of the model in turn, the images in the first."""
        turns = []
        for i, text in enumerate(texts):
            content = [{"type": "text", "text": text}]
            if i == 0:
                content = [{"type": "image"}] * len(images) + content
            turns.append({"role": ("user", "assistant")[i % 2], "content": content})
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return self.processor(text=[text], images=images or None, return_tensors="pt")

    def answer(self, images, *texts, new_tokens=8):
        fed = self.inputs(images, *texts)
        with torch.no_grad():
            made = self.model.generate(**fed, max_new_tokens=new_tokens, do_sample=False)
        return made[0, fed["input_ids"].shape[1] :].tolist()
