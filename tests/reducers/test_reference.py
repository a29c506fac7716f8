"""Every reducer equals an independent plain-loop float64 reference: same indices, features within 1e-4."""

import itertools

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from reducer_cases import REFERENCES, Inputs, computed, expected, random_inputs
from reference import reducers as reference

from fico_export import reducers
from fico_export.errors import ConfigError
from fico_export.exporter.trace import Signature, graph_from_module, simplify
from fico_export.reducers.base.reducer import Depth

SEEDS = range(100)
CHANNELS = 128  # above the largest K, so that the tokens never lose rank


def budget(method: str) -> int:
    """K of the random tests; a FiCoCo layer drops 43 of 576 at K = 64, a ToMe layer 23 to 25."""
    return {"none": 576, "ficoco-v": 533, "tome": 551}.get(method, 64)


def test_every_method_has_a_reference():
    assert sorted(REFERENCES) == reducers.names()


@pytest.mark.parametrize("method", reducers.names())
def test_torch_equals_the_reference_over_a_hundred_seeds(method):
    for seed in SEEDS:
        inputs = random_inputs(seed, channels=CHANNELS)
        want_tokens, want_indices = expected(method, inputs, budget(method))
        got_tokens, got_indices = computed(method, inputs, budget(method))

        np.testing.assert_array_equal(got_indices[0], want_indices, err_msg=f"seed {seed}")
        np.testing.assert_allclose(got_tokens[0], want_tokens, atol=1e-4, err_msg=f"seed {seed}")


@pytest.mark.parametrize("method", [name for name in reducers.names() if name != "none"])
def test_onnx_runtime_equals_torch_over_a_hundred_seeds(method, tmp_path):
    session = export_alone(method, budget(method), tmp_path / "reducer.onnx")
    for seed in SEEDS:
        inputs = random_inputs(seed, channels=CHANNELS)
        want_tokens, want_indices = computed(method, inputs, budget(method))
        feeds = {
            "tokens": inputs.tokens.numpy(),
            "queries": inputs.queries.numpy(),
            "keys": inputs.keys.numpy(),
            "positions": inputs.positions.numpy(),
        }
        wanted = {i.name for i in session.get_inputs()}
        got_tokens, got_indices = session.run(None, {k: v for k, v in feeds.items() if k in wanted})

        np.testing.assert_array_equal(got_indices, want_indices, err_msg=f"seed {seed}")
        np.testing.assert_allclose(got_tokens, want_tokens, atol=1e-4, err_msg=f"seed {seed}")


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


def export_alone(method: str, keep: int, path):
    """A session over a graph that holds the reducer and nothing else."""
    reducer = reducers.get(method)
    options = reducer.parse_options({})

    class Alone(torch.nn.Module):
        def forward(self, tokens, queries, keys, positions):
            inputs = Inputs(tokens, queries, keys, positions, (24, 24))
            result = reducer.apply(tokens, inputs.cues(), keep, options)
            return result.tokens, result.indices

    example = random_inputs(0, channels=CHANNELS)
    examples = (example.tokens, example.queries, example.keys, example.positions)
    signature = Signature(["tokens", "queries", "keys", "positions"], examples, None, ["reduced", "indices"])
    graph = graph_from_module(Alone(), signature, 18)
    simplify(graph)
    graph.ir_version = 10
    ir.save(graph, path)
    return ort.InferenceSession(str(path))
