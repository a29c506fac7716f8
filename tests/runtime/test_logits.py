"""What generation_config.json does to logits, against transformers' own processors and against `generate` itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration
from transformers.generation import logits_process as theirs

from fico_export.bundle.generation_config import parse
from fico_export.errors import BundleError, ConfigError, EngineError
from fico_export.runtime import logits
from fico_export.runtime.sampling import GREEDY, Sampler, Sampling

EOS = 2
PROCESSORS = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "a penalty below 1": {"repetition_penalty": 0.8},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "no token twice": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "suppress_tokens": {"suppress_tokens": [*range(40, 300), 9999]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [*range(100, 460)]},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(0, 400, 2)] + [[449, 3], [EOS]]},
    "sequence_bias": {"sequence_bias": [[[7], 9.0], [[7, 8], 12.0], [[7, 8, 9], 20.0]]},
    "min_new_tokens": {"min_new_tokens": 5, "sequence_bias": [[[EOS], 50.0]]},
    "min_length": {"min_length": 84, "sequence_bias": [[[EOS], 50.0]]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [3, 2.5]},
    "remove_invalid_values": {"remove_invalid_values": True, "suppress_tokens": [5]},
}
WARPERS = {
    "nothing": {},
    "temperature": {"temperature": 0.4},
    "top_k": {"top_k": 5},
    "all of them": {"top_k": 0},
    "top_p": {"top_k": 0, "top_p": 0.6},
    "min_p": {"top_k": 0, "min_p": 0.3},
    "top_h": {"top_k": 0, "top_h": 0.4},
    "typical_p": {"top_k": 0, "typical_p": 0.5},
    "epsilon_cutoff": {"top_k": 0, "epsilon_cutoff": 0.003},
    "eta_cutoff": {"top_k": 0, "eta_cutoff": 0.01},
    "null is the default": {"top_k": None, "top_p": None, "temperature": None},
}
TOGETHER = {
    "every processor": {
        "repetition_penalty": 1.2, "encoder_repetition_penalty": 1.1, "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 2, "bad_words_ids": [[7], [9, 10]], "sequence_bias": [[[7], 9.0]],
        "min_new_tokens": 3, "exponential_decay_length_penalty": [2, 1.1], "suppress_tokens": [5, 6],
        "begin_suppress_tokens": [11, 12],
    },
    "every warper": {
        "temperature": 0.7, "top_h": 0.9, "top_k": 100, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9,
        "epsilon_cutoff": 1e-4, "eta_cutoff": 1e-3,
    },
}  # fmt: skip


def parsed(**content):
    return parse(content, Path("generation_config.json"), error=BundleError, fix="correct it")


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return LlavaForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def inputs(tiny_checkpoint):
    """A question about an image, all of whose visual tokens stand in the prompt."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3)).astype(np.uint8))
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "a"}]}
    ]
    return AutoProcessor.from_pretrained(tiny_checkpoint).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def require_generates_scores(model, inputs, config, sampling, *, sample):
    """Step by step, on the logits that `generate` had, ours and its scores are equal."""
    torch.manual_seed(0)
    model.generation_config = GenerationConfig(**config, do_sample=sample, eos_token_id=EOS)
    out = model.generate(
        **inputs,
        max_new_tokens=12,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    prompt = inputs["input_ids"][0].numpy()
    sampler = Sampler(sampling, parsed(**config, do_sample=sample), prompt, [EOS])
    for raw, processed, token in zip(out.logits, out.scores, out.sequences[0, prompt.size :], strict=True):
        ours, expected = sampler.scores(raw[0].numpy()), processed[0].numpy()
        np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(expected))
        left = np.isfinite(expected)
        # Ours may stand a constant apart where they are drawn from: only differences count.
        apart = ours[left].max() - expected[left].max() if sample else 0
        np.testing.assert_allclose(ours[left], expected[left] + apart, rtol=1e-5, atol=1e-4)
        sampler.accept(int(token))


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_logits_of_greedy_answers_become_those_of_generate(model, inputs, name):
    require_generates_scores(model, inputs, PROCESSORS[name], GREEDY, sample=False)


@pytest.mark.parametrize("name", WARPERS)
def test_the_distribution_that_is_drawn_from_is_that_of_generate(model, inputs, name):
    require_generates_scores(model, inputs, WARPERS[name], Sampling(), sample=True)


def test_rules_come_in_the_order_of_generate(model, inputs):
    require_generates_scores(model, inputs, TOGETHER["every processor"], GREEDY, sample=False)
    every = TOGETHER["every processor"] | TOGETHER["every warper"]
    require_generates_scores(model, inputs, every, Sampling(), sample=True)


@given(data=st.data(), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_each_processor_does_what_that_of_transformers_does(data, seed):
    generator = np.random.default_rng(seed)
    size = data.draw(st.integers(5, 30))
    ids = generator.integers(0, size + 2, data.draw(st.integers(1, 40)))  # some without a score
    scores = generator.normal(0, 3, size).astype(np.float32)
    ngram = data.draw(st.integers(1, 4))
    bad = [generator.integers(0, size, n).tolist() for n in (1, 2, 3)] + [
        [*ids[-1:].clip(max=size - 1).tolist(), 1]
    ]
    tokens = generator.integers(0, size, 4).tolist()
    pairs = [
        (theirs.RepetitionPenaltyLogitsProcessor(1.3), logits.repetition_penalty(ids, scores, penalty=1.3)),
        (theirs.NoRepeatNGramLogitsProcessor(ngram), logits.no_repeated_ngram(ids, scores, size=ngram)),
        (
            theirs.NoBadWordsLogitsProcessor(bad),
            logits.sequence_bias(ids, scores, biases=[(b, -np.inf) for b in bad]),
        ),
        (theirs.SuppressTokensLogitsProcessor(tokens), logits.suppress(ids, scores, tokens=tokens)),
        (
            theirs.SuppressTokensAtBeginLogitsProcessor(tokens, 7),
            logits.suppress(ids, scores, tokens=tokens, only_at=7),
        ),
        (
            theirs.MinLengthLogitsProcessor(9, [1, 3]),
            logits.min_length(ids, scores, length=9, eos_ids=[1, 3]),
        ),
        (
            theirs.ExponentialDecayLengthPenalty((2, 1.5), [1, 3], 3),
            logits.length_decay(ids, scores, start=5, factor=1.5, eos_ids=[1, 3]),
        ),
    ]
    for process, ours in pairs:
        expected = process(torch.from_numpy(ids)[None], torch.from_numpy(scores)[None])[0].numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-6, err_msg=type(process).__name__)


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 0.99), spread=st.floats(0.1, 8))
@settings(max_examples=60, deadline=None)
def test_each_warper_keeps_what_that_of_transformers_keeps(seed, share, spread):
    scores = np.random.default_rng(seed).normal(0, spread, 60).astype(np.float32)
    scores[5] = -np.inf
    pairs = [
        (theirs.TopPLogitsWarper(share), logits.top_p(scores, mass=share)),
        (theirs.MinPLogitsWarper(share), logits.min_p(scores, share=share)),
        (theirs.TopHLogitsWarper(share), logits.top_h(scores, share=share)),
        (theirs.TypicalLogitsWarper(share), logits.typical(scores, mass=share)),
        (theirs.EpsilonLogitsWarper(share), logits.epsilon(scores, cutoff=share)),
        (theirs.EtaLogitsWarper(share), logits.eta(scores, cutoff=share)),
    ]
    for warp, ours in pairs:
        expected = warp(None, torch.from_numpy(scores)[None])[0].numpy()
        np.testing.assert_array_equal(ours, expected, err_msg=type(warp).__name__)


def test_what_is_given_wins_over_the_bundle_and_the_rest_is_the_bundles():
    bundles = parsed(do_sample=True, temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.1)
    assert Sampling().over(bundles) == bundles
    warmer = Sampling(temperature=1.5, top_k=0).over(bundles)
    assert (warmer.temperature, warmer.top_k, warmer.top_p, warmer.repetition_penalty) == (1.5, 0, 0.9, 1.1)
    greedy = GREEDY.over(bundles)
    assert not greedy.samples
    assert greedy.repetition_penalty == 1.1
    assert Sampling(temperature=0.5).over(parsed()).samples
    assert Sampling(temperature=0.5).over(parsed()).top_k == 50  # as generate takes where nobody says


@pytest.mark.parametrize("given", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}])
def test_a_filter_that_nothing_would_be_drawn_through_is_refused(given):
    with pytest.raises(ConfigError, match=next(iter(given))) as caught:
        Sampling(**given).over(parsed(temperature=0.7))
    assert "--temperature 1" in caught.value.fix
    assert Sampling(**given, temperature=1.0).over(parsed()).samples
    assert Sampling(**given).over(parsed(do_sample=True)).samples
    assert not Sampling(top_p=1.0, top_k=0, min_p=0).over(parsed()).samples


def test_rules_that_leave_no_token_are_refused():
    sampler = Sampler(GREEDY, parsed(suppress_tokens=[0, 1, 2]), [1], [0])
    with pytest.raises(EngineError, match=r"generation_config\.json") as caught:
        sampler(np.zeros(3, np.float32))
    assert "suppress_tokens" in caught.value.fix


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": "1.2"}, "repetition_penalty"),
        ({"suppress_tokens": [1, "b"]}, "suppress_tokens"),
        ({"bad_words_ids": [1, 2]}, "bad_words_ids"),
        ({"sequence_bias": [[1.0, [2]]]}, "sequence_bias"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 2.5}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"do_sample": "yes"}, "do_sample"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(content, name):
    with pytest.raises(BundleError, match=rf"generation_config\.json: {name} is "):
        parsed(**content)


def test_the_longest_answer_is_what_the_checkpoint_says():
    assert parsed().new_tokens(40) == 256
    assert parsed(max_new_tokens=1000, max_length=20).new_tokens(40) == 1000
    assert parsed(max_length=4096).new_tokens(40) == 256
    assert parsed(max_length=50).new_tokens(40) == 10
    assert parsed(max_length=50).new_tokens(60) == 1
