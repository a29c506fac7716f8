"""Greedy choice and the filters, against transformers' own warpers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fico_export.errors import ConfigError, EngineError
from fico_export.runtime.sampling import Sampler, Sampling


def reference_probabilities(logits, temperature, top_k, top_p):
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    scores = warpers(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits)[None])
    return scores.double().softmax(-1)[0].numpy()


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 50, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.01])
def test_the_filtered_distribution_is_that_of_transformers(temperature, top_k, top_p):
    for seed in range(3):
        logits = np.random.default_rng(seed).normal(0, 4, 1000).astype(np.float32)
        ours = Sampler(Sampling(temperature, top_p, top_k)).probabilities(logits)
        theirs = reference_probabilities(logits, temperature, top_k, top_p)
        np.testing.assert_array_equal(ours > 0, theirs > 0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-9)


def test_tokens_tied_with_the_last_of_top_k_stay():
    logits = np.array([1, 3, 2, 2, 2, 0], np.float32)
    ours = Sampler(Sampling(temperature=1.0, top_k=2)).probabilities(logits)
    np.testing.assert_array_equal(np.flatnonzero(ours), [1, 2, 3, 4])
    np.testing.assert_allclose(ours, reference_probabilities(logits, 1.0, 2, 1.0), rtol=1e-6)


@pytest.mark.parametrize("top_p", [0.25, 0.5, 0.9])
def test_a_sum_that_is_exactly_top_p_falls_as_in_transformers(top_p):
    for vocabulary in (2, 4, 8, 10):
        logits = np.zeros(vocabulary, np.float32)
        ours = Sampler(Sampling(temperature=1.0, top_p=top_p)).probabilities(logits)
        theirs = reference_probabilities(logits, 1.0, 0, top_p)
        assert np.count_nonzero(ours) == np.count_nonzero(theirs)


def test_temperature_zero_takes_the_lowest_of_tied_tokens():
    logits = np.array([0, 5, -1, 5, 5], np.float32)
    sampler = Sampler(Sampling())
    assert sampler(logits) == 1
    np.testing.assert_array_equal(sampler.probabilities(logits), [0, 1, 0, 0, 0])


def test_the_same_seed_chooses_the_same_tokens():
    logits = np.random.default_rng(0).normal(0, 1, 500).astype(np.float32)
    first, second = (Sampler(Sampling(temperature=1.0, seed=7)) for _ in range(2))
    chosen = [first(logits) for _ in range(50)]
    assert chosen == [second(logits) for _ in range(50)]
    assert len(set(chosen)) > 10


def test_tokens_come_as_often_as_their_probability():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, top_k=3, seed=0))
    counts = np.bincount([sampler(logits) for _ in range(4000)], minlength=4)
    assert counts[3] == 0
    np.testing.assert_allclose(counts[:3] / 4000, np.array([0.5, 0.3, 0.15]) / 0.95, atol=0.03)


@given(
    logits=st.lists(
        st.integers(-80_000, 80_000).map(lambda eighths: eighths / 8) | st.just(-np.inf), max_size=40
    ),
    temperature=st.floats(1e-300, 100),
    top_p=st.floats(1e-6, 1),
    top_k=st.integers(0, 50),
)
@settings(max_examples=200, deadline=None)
def test_the_most_probable_token_survives_every_filter(logits, temperature, top_p, top_k):
    scores = np.array([*logits, 0.0], np.float32)
    sampler = Sampler(Sampling(temperature, top_p, top_k, seed=1))
    probabilities = sampler.probabilities(scores)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities[scores == scores.max()].max() > 0
    assert probabilities[sampler(scores)] > 0


def test_the_logits_given_are_left_as_they_are():
    logits = np.random.default_rng(0).normal(0, 1, 50).astype(np.float32)
    before = logits.copy()
    Sampler(Sampling(temperature=1.0, top_p=0.5, top_k=5))(logits)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[0, np.nan, 1], [0, np.inf], [-np.inf, -np.inf]])
def test_logits_that_are_not_numbers_are_refused(logits, temperature):
    with pytest.raises(EngineError, match="logits") as caught:
        Sampler(Sampling(temperature=temperature))(np.array(logits, np.float32))
    assert "fp32" in caught.value.fix


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"top_k": 1.5},
        {"seed": -1},
        {"seed": 0.5},
    ],
)
def test_a_setting_outside_its_range_is_refused_with_a_fix(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name) as caught:
        Sampling(**wrong)
    assert caught.value.fix
