"""Tiny checkpoints of SmolVLM, Idefics3 and InternVL in their public layouts, and transformers' own answers with them."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import transformers
from anyres_checkpoints import fill
from onevision_checkpoints import NoVideo, tokenizer
from transformers.models.smolvlm import processing_smolvlm

from fico_export import models
from fico_export.options import ExportOptions
from fico_export.runtime.inputs.layout import Layout

STEPS = {
    "do_convert_rgb": True, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
}  # fmt: skip
STACK = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
TEXT = STACK | {
    "num_hidden_layers": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
_PARTS = "{%- for p in m.content %}{%- if p.type == 'image' %}{{ IMAGE }}{%- else %}{{ p.text }}{%- endif %}{%- endfor %}"
SMOLVLM = (  # one <|im_start|> for the whole conversation; no space after the colon where an image comes first
    "<|im_start|>{%- for m in messages %}{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    + _PARTS.replace("IMAGE", "'<image>'")
    + "{{ '<end_of_utterance>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ 'Assistant:' }}{%- endif %}"
)
CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    + _PARTS.replace("IMAGE", "'<IMG_CONTEXT>\\n'")
    + "{{ '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
SMOL_TOKENS = {
    "image_token": "<image>", "end_of_utterance_token": "<end_of_utterance>", "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
}  # fmt: skip
INTERN_TOKENS = {
    "context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One of the families, with one of its decoders.

    Attributes:
        family: its model type.
        names: begins those of transformers' classes.
        side: of a tile, in pixels.
        cells: on a side of a tile.
        joined: patches on a side of a cell.
        most: tiles on the longer side of an image, or of an image.
        vision: of config.json, beside `STACK`.
        config: of config.json.
        processor: of preprocessor_config.json, beside `STEPS`.
        length: key of processor_config.json that says how many tokens a tile has.
        tokens: the special ones that the processor reads off its tokenizer; the image's is the first.
        eos: ends an answer.
        template: of the chat.
        single: to show an image as one tile, what transformers' image processor is told.
        decoder: model type.
    """

    family: str
    names: str
    side: int
    cells: int
    joined: int
    most: int
    vision: dict
    config: dict
    processor: dict
    length: str
    tokens: dict
    eos: str
    template: str
    single: dict
    decoder: str

    @property
    def a_tile(self):
        """Visual tokens of a tile."""
        return self.cells**2


def _smol(family, names, side, cells, joined, most):
    edges = {"size": {"longest_edge": most * side}, "max_image_size": {"longest_edge": side}}
    return Kind(
        family=family, names=names, side=side, cells=cells, joined=joined, most=most,
        vision={"model_type": f"{family}_vision", "image_size": side, "patch_size": 8, "num_hidden_layers": 3},
        config={"scale_factor": joined},
        processor={"image_processor_type": f"{names}ImageProcessor", "do_image_splitting": True, "do_pad": True, "resample": 1,
                   "image_mean": [0.5] * 3, "image_std": [0.5] * 3} | edges,
        length="image_seq_len", tokens=SMOL_TOKENS, eos="<end_of_utterance>", template=SMOLVLM,
        single={"do_image_splitting": False}, decoder="llama",
    )  # fmt: skip


def _intern(decoder):
    side, cells, joined, most = 112, 4, 2, 12
    return Kind(
        family="internvl", names="InternVL", side=side, cells=cells, joined=joined, most=most,
        vision={"model_type": "internvl_vision", "image_size": [side, side], "patch_size": [14, 14], "num_hidden_layers": 4,
                "attention_bias": True, "use_qk_norm": False, "norm_type": "layer_norm", "use_mean_pooling": True},
        config={"downsample_ratio": 1 / joined, "image_seq_length": cells**2, "vision_feature_layer": -1,
                "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu"},
        processor={"image_processor_type": "GotOcr2ImageProcessorFast", "size": {"height": side, "width": side},
                   "crop_to_patches": False, "min_patches": 1, "max_patches": most, "resample": 3,
                   "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        length="image_seq_length", tokens=INTERN_TOKENS, eos="<|im_end|>", template=CHATML,
        single={"crop_to_patches": False}, decoder=decoder,
    )  # fmt: skip


KINDS = {
    "smolvlm": _smol("smolvlm", "SmolVLM", side=64, cells=4, joined=2, most=4),
    "idefics3": _smol("idefics3", "Idefics3", side=72, cells=3, joined=3, most=3),
    "internvl": _intern("qwen2"),
    "internvl-qwen3": _intern("qwen3"),
}


def write_tiled(folder, name, vision=None):
    """Transformers' own classes with random weights: keys as the public checkpoints have them, which they save.

    Args:
        folder: to write into.
        name: of `KINDS`.
        vision: more of the tower's config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = KINDS[name]
    first = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *kind.tokens.values())
    # With a token for two line breaks, as those of the public models have.
    made = tokenizer(first if kind.family == "internvl" else (*first, *ROWS), ("\n\n",) * 20)
    image, eos = made.token_to_id(next(iter(kind.tokens.values()))), made.token_to_id(kind.eos)
    text = TEXT | {"model_type": kind.decoder, "vocab_size": -(-made.get_vocab_size() // 16) * 16}
    text |= {"head_dim": 32} if kind.decoder == "qwen3" else {}
    settings = {
        "model_type": kind.family,
        "image_token_id": image,
        "tie_word_embeddings": False,
    } | kind.config
    parsed = transformers.AutoConfig.for_model(
        **settings, vision_config=STACK | kind.vision | (vision or {}), text_config=text
    )
    model = transformers.AutoModelForImageTextToText.from_config(parsed, dtype=torch.float32)
    fill(model, 2)
    model.generation_config = transformers.GenerationConfig(eos_token_id=[eos], pad_token_id=eos)
    model.save_pretrained(folder)
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(kind.template)
    named = {"eos_token": kind.eos, "pad_token": "<|endoftext|>", "extra_special_tokens": kind.tokens}
    for file, content in (
        (
            "tokenizer_config",
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096} | named,
        ),
        ("preprocessor_config", kind.processor | STEPS),
        ("processor_config", {"processor_class": f"{kind.names}Processor", kind.length: kind.a_tile}),
    ):
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


class Theirs:
    """Transformers with a checkpoint: its processor, on Pillow, its greedy answers, and what its tower makes of tiles."""

    def __init__(self, folder, kind):
        self.kind = kind
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
        # Says the number of a video's frames in words, by a package that is not needed here.
        processing_smolvlm.num2words = processing_smolvlm.num2words or str
        base = getattr(transformers, f"{kind.names}Processor")
        parts = {"video_processor": NoVideo()} if "video_processor" in base.get_attributes() else {}
        checked = {"check_argument_for_proper_class": lambda self, name, argument: type(argument)}
        self.processor = type(base.__name__, (base,), checked)(
            image_processor=transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(),
            **{kind.length: kind.a_tile},
            **parts,
        )

    def inputs(self, *turns, single=False):
        """What the model is fed: turns of the user and of the model in turn, each a text, or images and a text.

        Args:
            turns: the conversation.
            single: whether each image is shown as one tile.
        """
        messages, shown = [], []
        for i, turn in enumerate(turns):
            images, text = turn if isinstance(turn, tuple) else ([], turn)
            shown += images
            content = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
            messages.append({"role": ("user", "assistant")[i % 2], "content": content})
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.processor(
            text=[prompt], images=shown or None, return_tensors="pt", **(self.kind.single if single else {})
        )

    def answer(self, *turns, new_tokens=8, single=False):
        fed = self.inputs(*turns, single=single)
        with torch.no_grad():
            made = self.model.generate(**fed, max_new_tokens=new_tokens, do_sample=False)
        return made[0, fed["input_ids"].shape[1] :].tolist()

    def pixels(self, *images, single=False):
        """[T, 3, S, S] of what the processor makes of images in one prompt: their tiles, one after another."""
        fed = self.inputs((list(images), "What?"), single=single)["pixel_values"]
        tiles = fed.flatten(0, -4).numpy()
        return tiles[(tiles != 0).any((1, 2, 3))]  # of several images, those with fewer are filled up

    def features(self, tiles):
        """[T, n, D] of tiles [T, 3, S, S]."""
        shown = torch.from_numpy(tiles)
        with torch.no_grad():
            made = self.model.model.get_image_features(
                shown if self.kind.family == "internvl" else shown[None]
            ).pooler_output
        return (
            (made if isinstance(made, torch.Tensor) else made[0])
            .reshape(len(tiles), self.kind.a_tile, -1)
            .numpy()
        )

    @contextmanager
    def weights_shown(self):
        """The model, whose decoder's attention gives its weights while this lasts."""
        config = self.model.get_decoder().config
        before, config._attn_implementation = config._attn_implementation, "eager"
        try:
            yield self.model
        finally:
            config._attn_implementation = before

    def logits(self, embeds, positions):
        """[S, V] of the decoder, for embeddings [S, C] at positions [S]."""
        language = self.model.get_decoder()
        with torch.no_grad():
            hidden = language(
                inputs_embeds=torch.from_numpy(embeds)[None],
                position_ids=torch.from_numpy(positions)[None],
                attention_mask=torch.ones(1, len(embeds), dtype=torch.int64),
            ).last_hidden_state
            return self.model.lm_head(hidden)[0].numpy()


@dataclass(frozen=True)
class Tiled:
    """A kind with its checkpoint, and transformers with it."""

    name: str
    folder: Path

    @property
    def kind(self):
        return KINDS[self.name]

    @cached_property
    def theirs(self):
        return Theirs(self.folder, self.kind)

    @cached_property
    def model(self):
        return models.load(self.folder)

    def shaped(self, *profiles, **options):
        """The model as an export of some profiles has it."""
        return self.model.shaped(ExportOptions.of({"method": "none", "profile": profiles} | options))

    def module(self, profile, method="none", keep=None, settings=None, **options):
        """The vision graph's module, with weights."""
        shaped = self.shaped(profile, method=method, **options)
        with torch.device("meta"):
            made = shaped.vision(
                shaped.plan(method, keep, settings or {}), torch.float32, profile=shaped.profile
            )
        return shaped.with_weights(made)

    def layout(self, *profiles):
        """How a prompt shows an image in these profiles; in all that the model has by default."""
        shaped = self.shaped(*profiles)
        return Layout(shaped.layout, shaped.profiles, "original", self.model.tokens.image_id)
