"""Whole answers under a generation config: those of `generate`, and `verify` sees where they are not."""

from pathlib import Path

import pytest
import torch
from cli_tools import copied, edit_json, edit_listed
from transformers import AutoProcessor, LlavaForConditionalGeneration

from fico_export import models
from fico_export.api import open_checkpoint
from fico_export.bundle.generation_config import parse
from fico_export.errors import BundleError
from fico_export.parity.verify import verify_bundle
from fico_export.progress import Silent
from fico_export.runtime.vlm import Vlm

RULES = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 4,
    "min_new_tokens": 4,
    "suppress_tokens": [5, 6],
    "begin_suppress_tokens": [40, 41],
    "bad_words_ids": [[7], [8, 9]],
}
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """A checkpoint whose authors have rules for the choice of tokens, greedy or not."""
    folder = copied(tiny_checkpoint, tmp_path_factory.mktemp("rules") / "checkpoint")
    edit_json(folder / "generation_config.json", **RULES)
    return folder


def generated(folder, images, new_tokens, **config):
    """Greedy ids by `generate` on the checkpoint."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": QUESTION}]
    inputs = AutoProcessor.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **config)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_are_those_of_generate_under_the_checkpoints_own_config(
    make_bundle, checkpoint, photographs, count
):
    vlm = Vlm(make_bundle(checkpoint))
    images = photographs[:count]
    ours = vlm.generate(QUESTION, images, max_new_tokens=24).token_ids
    assert ours == generated(checkpoint, images, 24)
    plain = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    assert ours != generated(checkpoint, images, 24, **plain)


@pytest.mark.parametrize(
    "config",
    [
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 0.7},
        {"exponential_decay_length_penalty": [1, 1.6]},
        {"sequence_bias": [[[3], 4.0], [[3, 4], 9.0]]},
        {"min_length": 90, "eos_token_id": [2, 3]},
    ],
)
def test_each_rule_alone_gives_the_answer_of_generate(make_bundle, checkpoint, photographs, config):
    vlm = Vlm(make_bundle(checkpoint))
    off = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
           "min_new_tokens": None, "suppress_tokens": None, "begin_suppress_tokens": None, "bad_words_ids": None}  # fmt: skip
    vlm.generation_config = parse(off | config, Path("g.json"), error=BundleError, fix="")
    eos = config.get("eos_token_id", [2])
    vlm.manifest = vlm.manifest.model_copy(
        update={"tokens": vlm.manifest.tokens.model_copy(update={"eos_ids": eos})}
    )
    ours = vlm.generate(QUESTION, photographs[:1], max_new_tokens=24).token_ids
    assert ours == generated(checkpoint, photographs[:1], 24, **{"eos_token_id": eos} | off | config)


def test_a_follow_up_turn_follows_the_rules_over_the_whole_conversation(make_bundle, checkpoint, photographs):
    chat = Vlm(make_bundle(checkpoint)).chat()
    first = chat.ask(QUESTION, photographs[:1], max_new_tokens=6)
    second = chat.ask("And that?", max_new_tokens=12).token_ids
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    turns = [
        {
            "role": "user",
            "content": [{"type": "image", "image": photographs[0]}, {"type": "text", "text": QUESTION}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": first.text}]},
        {"role": "user", "content": [{"type": "text", "text": "And that?"}]},
    ]
    inputs = AutoProcessor.from_pretrained(checkpoint).apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert second == out[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("wrong", [None, {"repetition_penalty": 1.1}, {"suppress_tokens": [5]}])
def test_verify_fails_for_a_rule_that_is_not_the_checkpoints(
    make_bundle, checkpoint, tmp_path, precision, wrong
):
    require_seen(make_bundle(checkpoint, 16, precision=precision, verify=False), checkpoint, tmp_path, wrong)


@pytest.mark.parametrize("wrong", [None, {"repetition_penalty": 1.1}])
def test_verify_of_int4_follows_the_rules_too(make_bundle, checkpoint, tmp_path, wrong):
    bundle = make_bundle(checkpoint, 16, precision="int4", block=32, verify=False)
    require_seen(bundle, checkpoint, tmp_path, wrong)


def require_seen(bundle, checkpoint, tmp_path, wrong):
    """`verify` fails where the bundle's rules are changed to wrong ones, for that reason, and passes else."""
    bundle = copied(bundle, tmp_path / "bundle")
    if wrong is not None:
        edit_listed(bundle, "generation_config.json", **wrong)
    report = verify_bundle(bundle, open_checkpoint(str(checkpoint), None), progress=Silent())
    failed = {check.metric for check in report.failed}
    assert ("logits processed as by generate" in failed) == (wrong is not None)
    assert failed <= {"logits processed as by generate", "greedy tokens equal"}
    if wrong is None:
        assert failed == set()


def test_the_tokens_of_sampling_are_those_that_generate_may_draw(make_bundle, checkpoint):
    vlm = Vlm(make_bundle(checkpoint))
    rules = parse(RULES | {"do_sample": True, "top_k": 1}, Path("g.json"), error=BundleError, fix="")
    vlm.generation_config = rules
    assert vlm.generate(QUESTION, max_new_tokens=12).token_ids == generated(checkpoint, [], 12)
    assert models.load(checkpoint).files().generation_config["repetition_penalty"] == 1.3
