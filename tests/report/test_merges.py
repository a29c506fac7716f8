"""The weights of merging are those that the method used."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from reducer_cases import random_inputs

from fico_export import reducers
from fico_export.api import open_checkpoint
from fico_export.reducers.base.reducer import Reducer, Reduction, Site
from fico_export.report.merges import application_weights, encoder, trace

KEEP = 96
BEFORE = [
    name
    for name in reducers.names()
    if isinstance(reducers.get(name), Reducer)
    and reducers.get(name).site is not Site.DECODER_LAYER
    and name != "none"
]


def applied(name):
    """A method on random tokens: its step, tokens, cues, what it left, and the weights found."""
    reducer, inputs = reducers.get(name), random_inputs(0, grid=(12, 12), channels=32)
    step = types.SimpleNamespace(reducer=reducer, options=reducer.parse_options({}))
    cues = inputs.cues()
    left = reducer.apply(inputs.tokens, cues, KEEP, step.options)
    return step, inputs.tokens, cues, left, *application_weights(step, KEEP, inputs.tokens, cues, left)


@pytest.mark.parametrize("name", BEFORE)
def test_weights_reproduce_what_a_method_left(name):
    _, tokens, _, left, weights, error = applied(name)

    assert error < 1e-5
    assert weights.shape == (KEEP, 144)
    for k in range(KEEP):
        expected = sum(weights[k, i] * tokens[0, i].double().numpy() for i in range(144))
        np.testing.assert_allclose(left.tokens[0, k].double().numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in BEFORE if not reducers.merges(n)])
def test_a_method_that_drops_has_one_weight_a_row(name):
    _, _, _, left, weights, _ = applied(name)
    expected = np.zeros((KEEP, 144))
    for k, index in enumerate(left.indices[0].tolist()):
        expected[k, index] = 1

    np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize("name", [n for n in BEFORE if reducers.merges(n)])
def test_weights_hold_for_other_tokens_under_the_same_cues(name):
    """So they are the method's, not just some that fit one input; a merged token has more than one."""
    step, tokens, cues, left, weights, _ = applied(name)
    others = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(7))
    again = step.reducer.apply(others, cues, KEEP, step.options)

    assert torch.equal(again.indices, left.indices)
    np.testing.assert_allclose(
        again.tokens[0].double().numpy(), weights @ others[0].double().numpy(), atol=2e-4
    )
    assert (np.count_nonzero(weights, axis=1) > 1).any()


def test_what_merges_is_what_the_records_say():
    for name in reducers.names():
        record = reducers.get(name)
        assert reducers.merges(name) == (isinstance(record, Reducer) and record.compress != "–")
    assert not reducers.merges("of-another-version")


def test_a_method_that_is_not_linear_has_no_weights():
    step, tokens, cues, left, *_ = applied("uniform")

    def squared(tokens, cues, keep, options):
        kept = reducers.get("uniform").apply(tokens, cues, keep, options)
        return Reduction(kept.tokens.square(), kept.indices)

    step.reducer = dataclasses.replace(step.reducer, apply=squared)
    left = squared(tokens, cues, KEEP, step.options)
    weights, error = application_weights(step, KEEP, tokens, cues, left)

    assert weights is None
    assert error > 0.1


@pytest.fixture(scope="module")
def model():
    return open_checkpoint("demo", None)


@pytest.mark.parametrize("method", ["ficoco-v", "visionzip@192,cenprune@64"])
def test_steps_are_multiplied_to_where_each_patch_ended(model, method):
    pixels = np.random.default_rng(0).normal(size=(1, 3, 192, 192)).astype(np.float32)
    followed = trace(encoder(model, method, 64, {})(model.profile.name), {"pixel_values": pixels})
    expected = np.eye(576)
    for step in followed.steps:
        expected = np.array([[row @ column for column in expected.T] for row in step.weights])
    share = followed.shares(576)

    assert len(followed.steps) == (3 if method == "ficoco-v" else 2)
    np.testing.assert_allclose(followed.weights(576), expected, atol=1e-12)
    assert followed.keep_index.tolist() == followed.steps[-1].live.tolist()
    held = share.sum(0)
    assert np.all(np.isclose(held, 1) | (held == 0))
    for k, patch in enumerate(followed.steps[-1].live):
        assert share[k, patch] > 0
    if method == "ficoco-v":  # drops nothing for good
        np.testing.assert_allclose(held, 1)
