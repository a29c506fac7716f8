"""Every reducer equals an independent plain-loop float64 reference: same indices, features within 1e-4.

Scores that tie within 1e-6 are excepted, of a decision, not of an image: all decisions that are no tie must be the
reference's. `scripts/check_reducers.py` runs every seed at every size and budget, in ONNX Runtime too.
"""

import itertools

import numpy as np
import pytest
import torch
from exhaustive import ASKED, of_each
from reducer_cases import (
    REFERENCES,
    acts_before_the_decoder,
    assert_right,
    computed,
    expected,
    export_alone,
    least_keep,
    random_inputs,
    run,
)
from reference import attention_select
from reference import reducers as reference

from fico_export import reducers
from fico_export.errors import ConfigError
from fico_export.reducers.base.reducer import Depth

pytestmark = pytest.mark.slow  # plain loops

METHODS = [name for name in reducers.names() if acts_before_the_decoder(name)]
# The largest with five of the 100 seeds, where not all is asked for with ten: the reference's loops take a hundred times as long
# for nine times the tokens.
LARGE = [((24, 24), 64), ((24, 24) if ASKED else (12, 12), 64)]
SMALL = [
    *[((12, 12), keep) for keep in (4, 16, 16, 48, 100)],
    *[((8, 8), keep) for keep in (1, 16, 16, 40)],
]
CASES = [case for large in LARGE for case in (large, *SMALL)]
CHANNELS = 256  # above the largest K, so that the tokens never lose rank
ONNX_SEEDS = range(25 if ASKED else 10)


def budget(method: str, keep: int, tokens: int) -> int:
    """K of one application. A layer leaves more: of 576 to 64, FiCoCo's first leaves 533 and ToMe's 551."""
    if method == "none":
        return tokens
    if tokens == 576 and keep == 64:
        keep = {"ficoco-v": 533, "tome": 551}.get(method, keep)
    return max(keep, least_keep(method, tokens, True))


def test_every_method_has_a_reference():
    assert sorted(REFERENCES) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_torch_equals_the_reference_over_a_hundred_seeds(method):
    for seed in range(100):
        grid, keep = CASES[seed % len(CASES)]
        inputs = random_inputs(seed, grid=grid, channels=CHANNELS)
        keep = budget(method, keep, inputs.tokens.shape[1])
        assert_right(method, inputs, keep, run(method, inputs, keep))


# The others' operators are in these graphs, and each one's whole graph runs in tests/export/test_vision_graph.py.
@pytest.mark.parametrize("method", of_each([name for name in METHODS if name != "none"]))
def test_onnx_runtime_equals_torch(method, tmp_path):
    grid, keep = (
        ((8, 8), 16) if method == "vispruner" else ((24, 24), 64)
    )  # its rounds are unrolled: 66 at 24×24
    keep = budget(method, keep, grid[0] * grid[1])
    alone = export_alone(
        method, random_inputs(0, grid=grid, channels=CHANNELS), keep, tmp_path / "alone.onnx"
    )
    for seed in ONNX_SEEDS:
        inputs = random_inputs(seed, grid=grid, channels=CHANNELS)
        got, want = alone(inputs), run(method, inputs, keep)
        if not torch.equal(got.indices, want.indices) or not torch.allclose(
            got.tokens, want.tokens, atol=1e-4
        ):
            ties = [assert_right(method, inputs, keep, result)[0] for result in (got, want)]
            assert any(ties), f"seed {seed}: not torch's, and no tie"


def test_a_wrong_decision_is_no_tie():
    """What settles ties settles nothing else: an order or a set that is off by more is refused."""
    inputs = random_inputs(0, grid=(8, 8), channels=CHANNELS)
    for method in ("dpp", "vispruner"):
        result = run(method, inputs, 16)
        left_out = next(i for i in range(64) if i not in result.indices[0])
        result.indices[0, -1] = left_out
        with pytest.raises((AssertionError, ValueError)):
            assert_right(method, inputs, 16, result)

    tokens, queries, keys = (t[0].double().numpy() for t in (inputs.tokens, inputs.queries, inputs.keys))
    orders = [order[0].tolist() for order in run("vispruner", inputs, 16).orders]
    for wrong in range(len(orders)):
        turned = [*orders[:wrong], [*orders[wrong][1:], orders[wrong][0]], *orders[wrong + 1 :]]
        with pytest.raises(ValueError, match="not that of the scores"):
            attention_select.vispruner(tokens, queries, keys, 4, 16, True, orders=turned)


@pytest.mark.parametrize(
    "settings",
    [
        {"lam": 0.65},
        {"attention": "softmax"},
        {"attention": "softmax", "normalize": False},
        {"normalize": False},
        {"epsilon": 0.98},
        {"window": 3},
        {"penalty": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
def test_every_reading_of_ficoco_equals_the_reference(settings, has_cls):
    for seed in range(5):
        inputs = random_inputs(seed, grid=(9, 7), live=50, has_cls=has_cls)
        want_tokens, want_indices = expected("ficoco-v", inputs, 31, settings)
        got_tokens, got_indices = computed("ficoco-v", inputs, 31, settings)

        np.testing.assert_array_equal(got_indices[0], want_indices)
        np.testing.assert_allclose(got_tokens[0], want_tokens, atol=1e-4)


@pytest.mark.parametrize("settings", [{"similarity": 0.7}, {"iterations": 0}, {"temperature": 0.1}], ids=str)
def test_every_option_of_g_prune_equals_the_reference(settings):
    inputs = random_inputs(3)
    want_tokens, want_indices = expected("g-prune", inputs, 64, settings)
    got_tokens, got_indices = computed("g-prune", inputs, 64, settings)

    np.testing.assert_array_equal(got_indices[0], want_indices)
    np.testing.assert_allclose(got_tokens[0], want_tokens, atol=1e-5)


@pytest.mark.parametrize("keep", [1, 2, 7, 16, 33, 64, 192, 571, 575, 576])
def test_pooling_equals_the_reference_at_every_budget(keep):
    inputs = random_inputs(0)
    want_tokens, want_indices = expected("pool", inputs, keep)
    got_tokens, got_indices = computed("pool", inputs, keep)

    np.testing.assert_array_equal(got_indices[0], want_indices)
    np.testing.assert_allclose(got_tokens[0], want_tokens, atol=1e-5)


@pytest.mark.parametrize(
    ("keep", "first_layer", "dropped"),
    [
        (192, None, [32] * 12),
        (128, None, [38] * 4 + [37] * 8),
        (64, None, [43] * 8 + [42] * 4),
        (32, None, [46] * 4 + [45] * 8),
        (64, 12, [47] * 6 + [46] * 5),
        (128, 12, [41] * 8 + [40] * 3),
    ],
)
def test_the_schedule_of_ficoco_is_the_published_one(keep, first_layer, dropped):
    reducer = reducers.get("ficoco-v")
    options = reducer.parse_options({} if first_layer is None else {"first_layer": first_layer})
    plan = reducer.schedule(576, keep, Depth(24, 23), options)
    left = [576, *plan.values()]

    assert list(plan) == list(range(first_layer or 11, 23))
    assert [a - b for a, b in itertools.pairwise(left)] == dropped
    assert dropped == reference.ficoco_v_schedule(576, keep, len(dropped))


def test_ficoco_refuses_a_first_layer_beyond_the_tower():
    reducer = reducers.get("ficoco-v")
    with pytest.raises(ConfigError, match="first_layer=23"):
        reducer.schedule(576, 64, Depth(24, 23), reducer.parse_options({"first_layer": "23"}))
