"""Tiny checkpoints of Qwen2.5-VL and Qwen3-VL in their public layouts, and transformers' own answers with them."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import transformers
from anyres_checkpoints import fill
from onevision_checkpoints import NoVideo, tokenizer

from fico_export import models
from fico_export.options import ExportOptions
from fico_export.runtime.inputs.layout import Layout

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{%- for p in m.content %}"
    "{%- if p.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{%- else %}{{ p.text }}{%- endif %}"
    "{%- endfor %}{{ '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
SYSTEM = "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
STEPS = {
    "do_convert_rgb": True, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "resample": 3, "temporal_patch_size": 2, "merge_size": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 64, "intermediate_size": 96, "depth": 4, "num_heads": 4, "out_hidden_size": 64, "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One of the two families.

    Attributes:
        cell: side of what becomes a visual token, in pixels.
        vision: of config.json, beside `VISION`.
        text: of config.json, beside `TEXT`.
        rope: positions of the decoder, as transformers 5 writes them.
        processor: of preprocessor_config.json, beside `STEPS`.
        names: begins those of transformers' classes.
        planes: how many the decoder adds.
    """

    cell: int
    vision: dict
    text: dict
    rope: dict
    processor: dict
    names: str
    planes: int = 0

    def resolution(self, rows, columns):
        """So many cells, as the option names them."""
        return f"{self.cell * rows}x{self.cell * columns}"

    def size(self, rows, columns, off=(0, 0)):
        """Width and height of an image that smart resizing makes so many cells of, though it is off by a few pixels."""
        return self.cell * columns + off[0], self.cell * rows + off[1]


KINDS = {
    # Windows of 2×2 cells, and two of the four layers see everything.
    "qwen2_5_vl": Kind(
        cell=28,
        vision={"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2},
        text={"num_hidden_layers": 3},
        rope={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        processor={"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "min_pixels": 4 * 28**2,
                   "max_pixels": 64 * 28**2, "image_mean": [0.48145466, 0.4578275, 0.40821073],
                   "image_std": [0.26862954, 0.26130258, 0.27577711]},
        names="Qwen2_5_VL",
    ),
    # A table of 6×6 positions, and three planes.
    "qwen3_vl": Kind(
        cell=32,
        vision={"patch_size": 16, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1, 2]},
        text={"num_hidden_layers": 4, "head_dim": 32},
        rope={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
        processor={"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "image_mean": [0.5] * 3,
                   "image_std": [0.5] * 3, "size": {"shortest_edge": 4 * 32**2, "longest_edge": 64 * 32**2}},
        names="Qwen3VL",
        planes=3,
    ),
}  # fmt: skip


def write_qwen(folder, family):
    """Transformers' own classes with random weights: keys as the public checkpoints have them, and so config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    kind, made = KINDS[family], tokenizer(SPECIAL)
    eos = made.token_to_id("<|im_end|>")
    text = TEXT | kind.text | {"vocab_size": -(-made.get_vocab_size() // 16) * 16}
    tokens = {
        f"{name}_token_id": made.token_to_id(f"<|{word}|>")
        for name, word in (("image", "image_pad"), ("video", "video_pad"))
    } | {f"vision_{end}_token_id": made.token_to_id(f"<|vision_{end}|>") for end in ("start", "end")}
    settings = {
        "model_type": family,
        "tie_word_embeddings": False,
        "vision_config": VISION | kind.vision,
    } | tokens
    parsed = transformers.AutoConfig.for_model(**settings, text_config=text | {"rope_parameters": kind.rope})
    model = getattr(transformers, f"{kind.names}ForConditionalGeneration")._from_config(
        parsed, dtype=torch.float32
    )
    fill(model, 4)
    model.generation_config = transformers.GenerationConfig(eos_token_id=[eos], pad_token_id=eos)
    model.save_pretrained(folder)
    (folder / "config.json").rename(folder / "saved_config.json")
    if family == "qwen2_5_vl":  # the decoder's values stand at the top level
        scaling = {"type": "mrope", "mrope_section": kind.rope["mrope_section"]}
        config = settings | text | {"rope_theta": kind.rope["rope_theta"], "rope_scaling": scaling}
    else:
        scaling = {key: value for key, value in kind.rope.items() if key != "rope_theta"}
        nested = text | {
            "model_type": "qwen3_vl_text",
            "rope_theta": kind.rope["rope_theta"],
            "rope_scaling": scaling,
        }
        config = settings | {"text_config": nested}
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text((SYSTEM if family == "qwen2_5_vl" else "") + CHATML)
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    for name, content in (
        ("config", config),
        (
            "tokenizer_config",
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096} | named,
        ),
        ("preprocessor_config", STEPS | kind.processor),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


class Theirs:
    """Transformers with a checkpoint: its processor, on Pillow, its greedy answers, and what its tower makes of an image."""

    def __init__(self, folder, family):
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
        base = getattr(transformers, f"{KINDS[family].names}Processor")
        checked = {"check_argument_for_proper_class": lambda self, name, argument: type(argument)}
        self.processor = type(base.__name__, (base,), checked)(
            image_processor=transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            video_processor=NoVideo(),
            chat_template=(folder / "chat_template.jinja").read_text(),
        )

    def inputs(self, *turns):
        """What the model is fed: turns of the user and of the model in turn, each a text, or images and a text."""
        messages, shown = [], []
        for i, turn in enumerate(turns):
            images, text = turn if isinstance(turn, tuple) else ([], turn)
            shown += images
            content = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
            messages.append({"role": ("user", "assistant")[i % 2], "content": content})
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.processor(text=[prompt], images=shown or None, return_tensors="pt")

    def answer(self, *turns, new_tokens=8):
        fed = self.inputs(*turns)
        assert "mm_token_type_ids" in fed  # without it, all positions would be those of text
        with torch.no_grad():
            made = self.model.generate(**fed, max_new_tokens=new_tokens, do_sample=False)
        return made[0, fed["input_ids"].shape[1] :].tolist()

    def pixels(self, image):
        """[3, H, W] of what the processor makes of an image: its patches put together again."""
        fed = self.processor.image_processor(image, return_tensors="np")
        size, side = self.processor.image_processor.patch_size, self.processor.image_processor.merge_size
        _, rows, columns = fed["image_grid_thw"][0]
        shape = (rows // side, columns // side, side, side, 3, STEPS["temporal_patch_size"], size, size)
        patches = fed["pixel_values"].reshape(shape)
        np.testing.assert_array_equal(patches[:, :, :, :, :, 0], patches[:, :, :, :, :, 1])
        return (
            patches[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * size, columns * size)
        )

    def features(self, image, **settings):
        """All features [N, D] of an image, and its planes [L, N, D]; none of a model without."""
        fed = self.processor.image_processor(image, return_tensors="pt", **settings)
        with torch.no_grad():
            made = self.model.get_image_features(fed["pixel_values"], fed["image_grid_thw"])
        planes = [plane[0] for plane in getattr(made, "deepstack_features", None) or []]
        return made.pooler_output[0].numpy(), np.stack(planes) if planes else None

    def positions(self, fed):
        """[3, S] of a prompt."""
        ids = {name: fed[name] for name in ("input_ids", "mm_token_type_ids", "attention_mask")}
        return self.model.model.get_rope_index(**ids, image_grid_thw=fed.get("image_grid_thw"))[0][
            :, 0
        ].numpy()

    def logits(self, embeds, positions, planes=None):
        """[S, V] of the decoder, for embeddings [S, C] at positions [3, S], with planes [L, S, C]."""
        mask, more = torch.ones(1, len(embeds), dtype=torch.int64), {}
        if planes is not None:
            rows = list(torch.from_numpy(planes))
            more = {"visual_pos_masks": mask.bool(), "deepstack_visual_embeds": rows}
        with torch.no_grad():
            hidden = self.model.model.language_model(
                inputs_embeds=torch.from_numpy(embeds)[None],
                position_ids=torch.from_numpy(positions)[:, None],
                attention_mask=mask,
                **more,
            ).last_hidden_state
            return self.model.lm_head(hidden)[0].numpy()


@dataclass(frozen=True)
class Qwen:
    """A family with its checkpoint, and transformers with it."""

    family: str
    folder: Path

    @property
    def kind(self):
        return KINDS[self.family]

    @cached_property
    def theirs(self):
        return Theirs(self.folder, self.family)

    @cached_property
    def model(self):
        return models.load(self.folder)

    def shaped(self, *resolutions, method="none"):
        """The model as an export of some resolutions has it."""
        return self.model.shaped(ExportOptions(method=method, resolution=resolutions))

    def layout(self, *resolutions, positions="original"):
        """How a prompt shows an image in these resolutions."""
        shaped = self.shaped(*resolutions)
        return Layout(shaped.layout, shaped.profiles, positions, self.model.tokens.image_id)
