"""A tiny LLaVA-OneVision checkpoint in the public layout, and transformers' own answers with it."""

import json
from functools import cache

import torch
import transformers
from anyres_checkpoints import fill, rename
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.video_processing_utils import VideoProcessorMixin

SIDE, PATCH = 70, 14  # 5×5 patches a tile: odd, as the real 27×27
PINPOINTS = [[rows * SIDE, columns * SIDE] for rows in range(1, 7) for columns in range(1, 7)]
SPECIAL = ("<image>", "<video>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
STEPS = {
    "do_convert_rgb": True, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "do_pad": True, "resample": 3, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.4],
}  # fmt: skip
TEMPLATE = (  # one space after the role, a line break before the text, none after <|im_end|>
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + ' ' }}"
    "{%- for p in m.content if p.type == 'image' %}{{ '<image>' }}{%- endfor %}"
    "{%- for p in m.content if p.type == 'video' %}{{ '<video>' }}{%- endfor %}"
    "{%- for p in m.content if p.type == 'text' %}{{ '\\n' + p.text }}{%- endfor %}{{ '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
WORDS = [
    "what is it and this which colour how many do you see a red green blue circle square user assistant" * 3
]


@cache
def tokenizer(special=SPECIAL, more=()):
    """Of Qwen2's kind: bytes, and nothing in front; trained on a few words, and on `more` texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([*WORDS, *more], trainer)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def write_onevision(folder, **config):
    """Transformers' own LlavaOnevision classes with random weights, keys as the public checkpoints have them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer()
    text = {
        "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "vocab_size": -(-made.get_vocab_size() // 16) * 16, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": PATCH, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vision_use_head": False,
    }  # fmt: skip
    settings = {
        "model_type": "llava_onevision", "vision_config": vision, "text_config": text, "tie_word_embeddings": False,
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9",
        "image_token_index": made.token_to_id("<image>"), "video_token_index": made.token_to_id("<video>"),
        "image_grid_pinpoints": PINPOINTS,
    } | config  # fmt: skip
    parsed = transformers.AutoConfig.for_model(**settings)
    model = transformers.LlavaOnevisionForConditionalGeneration._from_config(parsed, dtype=torch.float32)
    fill(model)
    eos = made.token_to_id("<|im_end|>")
    model.generation_config = transformers.GenerationConfig(eos_token_id=[eos], pad_token_id=eos)
    model.save_pretrained(folder)
    rename(folder, lambda key: key.replace("vision_tower.", "vision_tower.vision_model.", 1))
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    kind = {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": PINPOINTS}
    for name, content in (
        (
            "tokenizer_config",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": 4096,
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
            },
        ),
        ("preprocessor_config", kind | {"size": {"height": SIDE, "width": SIDE}} | STEPS),
        (
            "processor_config",
            {
                "processor_class": "LlavaOnevisionProcessor",
                "num_image_tokens": 25,
                "vision_feature_select_strategy": "full",
                "vision_aspect_ratio": "anyres_max_9",
            },
        ),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


class NoVideo(VideoProcessorMixin):
    """Stands where the processor wants its video processor, which needs torchvision."""

    num_frames, fps = 8, 1  # SmolVLM's template asks for them, of images too


class _Processor(transformers.LlavaOnevisionProcessor):
    def check_argument_for_proper_class(self, name, argument):
        return type(argument)


class Theirs:
    """Transformers with a checkpoint: its processor, on Pillow, and its greedy answers."""

    def __init__(self, folder):
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
        settings = json.loads((folder / "processor_config.json").read_text())
        settings.pop("processor_class")
        self.processor = _Processor(
            image_processor=transformers.AutoImageProcessor.from_pretrained(folder, backend="pil"),
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
            video_processor=NoVideo(),
            chat_template=(folder / "chat_template.jinja").read_text(),
            **settings,
        )

    def inputs(self, *turns):
        """What the model is fed: turns of the user and of the model in turn, each a text, or images and a text.

        The images are nested, as those of a conversation are: of several, none is cut into tiles.
        """
        messages, shown = [], []
        for i, turn in enumerate(turns):
            images, text = turn if isinstance(turn, tuple) else ([], turn)
            shown += images
            content = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
            messages.append({"role": ("user", "assistant")[i % 2], "content": content})
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.processor(text=[prompt], images=[shown] if shown else None, return_tensors="pt")

    def pixels(self, frames):
        """[1, F, 3, H, W] as the video processor makes them, by the image processor, on Pillow."""
        tiles = [frame.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for frame in frames]
        made = self.processor.image_processor(tiles, return_tensors="pt")["pixel_values"]
        return made[None, :, 0]  # the whole image's tile

    def video(self, frames):
        """[F·9 + 1, D]: the frames' features and the newline."""
        with torch.no_grad():
            return self.model.get_video_features(self.pixels(frames)).pooler_output[0].numpy()

    def answer(self, *turns, new_tokens=8, video=None):
        """Its tokens; a video is of the first turn, which has one text."""
        fed = self.inputs(*turns)
        if video is not None:
            image = self.processor.image_token_id
            ids, newline = fed["input_ids"][0].tolist(), self.processor.tokenizer("\n")["input_ids"][0]
            at = ids.index(newline, max((i for i, token in enumerate(ids) if token == image), default=0))
            ids[at:at] = [self.processor.video_token_id] * (9 * len(video) + 1)
            more = {
                "input_ids": torch.tensor([ids]),
                "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
            }
            fed = {**fed, **more, "pixel_values_videos": self.pixels(video)}
        with torch.no_grad():
            made = self.model.generate(**fed, max_new_tokens=new_tokens, do_sample=False)
        return made[0, fed["input_ids"].shape[1] :].tolist()
