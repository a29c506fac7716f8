"""Answers of exported bundles, through the runtime, equal transformers' generate on the same checkpoint."""

import itertools
import json
import warnings

import numpy as np
import pytest
import torch
from checkpoints import to_public_layout, write_tiny
from exhaustive import exhaustive
from transformers import AutoProcessor, LlavaForConditionalGeneration

import fico_export
from fico_export.models.parts.transformers_quiet import quiet_transformers
from fico_export.runtime.inputs.prompt import Message

pytestmark = pytest.mark.slow

NEW_TOKENS = 32


class Reference:
    """transformers' own model and processor."""

    def __init__(self, folder):
        quiet_transformers()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
            self.processor = AutoProcessor.from_pretrained(folder)

    def generate(self, turns, new_tokens=NEW_TOKENS):
        """Token ids answered to [(role, text, images), …]."""
        messages, images = [], []
        for role, text, pictures in turns:
            images += pictures
            content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": text}]
            messages.append({"role": role, "content": content})
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self.processor(text=prompt, images=images or None, return_tensors="pt")
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
        return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module", params=["public layout", "saved by transformers 5"])
def pair(request, tiny_checkpoint, tiny_checkpoint_v5, make_bundle):
    """A loaded bundle that keeps all tokens, and its reference."""
    folder = tiny_checkpoint if request.param == "public layout" else tiny_checkpoint_v5
    return fico_export.load(make_bundle(folder)), Reference(folder)


def test_one_picture(pair, photographs):
    vlm, reference = pair
    answers = set()
    for picture in photographs:
        answer = vlm.generate("What is in this picture?", [picture], max_new_tokens=NEW_TOKENS)

        assert answer.token_ids == reference.generate([("user", "What is in this picture?", [picture])])
        assert answer.visual_tokens == 64
        answers.add(tuple(answer.token_ids))
    assert len(answers) > 1  # the image matters


def test_two_pictures(pair, photographs):
    vlm, reference = pair
    for first, second in itertools.pairwise(photographs):
        answer = vlm.generate("What differs?", [first, second], max_new_tokens=NEW_TOKENS)

        assert answer.token_ids == reference.generate([("user", "What differs?", [first, second])])
        assert answer.visual_tokens == 128


def test_text_alone(pair):
    vlm, reference = pair
    for question in ("Who are you?", "How many?", "Is it red, green or 蓝色 🐈?", "x", "Describe\nit."):
        answer = vlm.generate(question, max_new_tokens=NEW_TOKENS)

        assert answer.token_ids == reference.generate([("user", question, [])])


def test_a_follow_up_turn_equals_the_whole_conversation_and_reuses_the_cache(pair, photographs):
    vlm, reference = pair
    for picture, other in itertools.pairwise(photographs):
        chat = vlm.chat()
        first = chat.ask("What is it?", [picture], max_new_tokens=NEW_TOKENS)
        second = chat.ask("And this one?", [other], max_new_tokens=NEW_TOKENS)
        third = chat.ask("Why?", max_new_tokens=NEW_TOKENS)
        turns = [
            ("user", "What is it?", [picture]),
            ("assistant", first.text, []),
            ("user", "And this one?", [other]),
        ]

        assert second.token_ids == reference.generate(turns)
        turns += [("assistant", second.text, []), ("user", "Why?", [])]
        assert third.token_ids == reference.generate(turns)
        assert first.cached_tokens == 0
        assert second.cached_tokens > 64
        assert third.cached_tokens > 128


VARIANTS = {
    "mistral": {"text": {"model_type": "mistral", "head_dim": 24, "sliding_window": 512}},
    "qwen2, tied": {
        "text": {"model_type": "qwen2", "tie_word_embeddings": True},
        "llava": {"tie_word_embeddings": True},
    },
    "llama3 rope": {
        "text": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        }
    },
    "linear rope, biases": {
        "text": {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            "attention_bias": True,
            "mlp_bias": True,
        }
    },
    "bfloat16": {"dtype": torch.bfloat16},
    "cls kept, last layer": {"llava": {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}},
    "two feature layers": {"llava": {"vision_feature_layer": [-2, 3]}},
    "gelu tower": {"vision": {"hidden_act": "gelu"}},
}


# What is theirs alone is tested elsewhere: frequencies in tests/models, activations by transformers' own functions.
LIKE_OTHERS = {"llama3 rope", "gelu tower"}


@pytest.mark.parametrize("variant", [exhaustive(v) if v in LIKE_OTHERS else v for v in VARIANTS])
def test_every_supported_shape_of_checkpoint(variant, tmp_path, photographs):
    folder = write_tiny(tmp_path / "checkpoint", **VARIANTS[variant])
    if variant == "cls kept, last layer":
        settings = json.loads((folder / "processor_config.json").read_text())
        settings["vision_feature_select_strategy"] = "full"
        (folder / "processor_config.json").write_text(json.dumps(settings))
    vlm = fico_export.load(fico_export.export(folder, out=tmp_path / "bundle", verify=False))
    reference = Reference(folder)
    for pictures in ([], photographs[:1], photographs[1:3]):
        answer = vlm.generate("What is in it?", pictures, max_new_tokens=8)

        assert answer.token_ids == reference.generate([("user", "What is in it?", pictures)])[:8]


def test_a_sharded_checkpoint_reads_like_a_whole_one(tmp_path, tiny_checkpoint_v5, make_bundle):
    model = LlavaForConditionalGeneration.from_pretrained(tiny_checkpoint_v5)
    folder = write_tiny(tmp_path / "sharded", seed=1)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    bundle = fico_export.export(folder, out=tmp_path / "bundle", verify=False)
    whole = fico_export.load(make_bundle(tiny_checkpoint_v5)).generate("What?", max_new_tokens=8)

    assert fico_export.load(bundle).generate("What?", max_new_tokens=8).token_ids == whole.token_ids


def test_both_layouts_of_one_checkpoint_give_one_answer(tmp_path, photographs):
    first = write_tiny(tmp_path / "v5", seed=3, dtype=torch.float16)
    second = to_public_layout(write_tiny(tmp_path / "public", seed=3, dtype=torch.float16))
    ids = [
        fico_export.load(fico_export.export(folder, 16, out=tmp_path / f"bundle-{folder.name}", verify=False))
        .generate("What?", photographs[:1], max_new_tokens=8)
        .token_ids
        for folder in (first, second)
    ]

    assert ids[0] == ids[1]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_a_reduced_bundle_answers_as_transformers_does_with_its_features(
    precision, positions, tiny_checkpoint, make_bundle, photographs
):
    """The decoder's side of a reduced bundle: K features in their places, at their position ids."""
    bundle = make_bundle(tiny_checkpoint, 16, precision=precision, positions=positions)
    vlm, reference = fico_export.load(bundle), Reference(tiny_checkpoint)
    encoded = vlm.encode_image(photographs[0])
    answer = vlm.generate("What is it?", photographs[:1], max_new_tokens=4)
    prompt = vlm.formatter.encode([Message("user", "What is it?", 1)], 16)
    at = prompt.index(vlm.manifest.tokens.image_id)
    spread = encoded.keep_index if positions == "original" else np.arange(16)
    after = at + (64 if positions == "original" else 16)
    ids = [*range(at), *(at + spread), *range(after, after + len(prompt) - at - 16)]
    tokens = []
    with torch.inference_mode():
        embeds = reference.model.get_input_embeddings()(torch.tensor([prompt]))
        embeds[0, at : at + 16] = torch.from_numpy(encoded.features.astype(np.float32))
        for _ in range(4):
            # Without a mask, transformers takes a gap in the positions for the start of another sequence.
            mask = torch.ones(1, len(ids), dtype=torch.int64)
            output = reference.model(
                inputs_embeds=embeds, position_ids=torch.tensor([ids]), attention_mask=mask
            )
            logits = output.logits[0, -1]
            tokens.append(int(logits.argmax()))
            ids.append(ids[-1] + 1)
            embeds = torch.cat(
                [embeds, reference.model.get_input_embeddings()(torch.tensor([tokens[-1:]]))], dim=1
            )

    assert answer.prompt_tokens == len(prompt)
    assert answer.token_ids == tokens
