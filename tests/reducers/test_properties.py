"""What every reducer of the registry promises, on any input; a new file in reducers/ is tested at once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reducer_cases import (
    TIES,
    Inputs,
    Result,
    acts_before_the_decoder,
    assert_right,
    computed,
    least_keep,
    random_inputs,
    run,
)

from fico_export import reducers
from fico_export.reducers.base.cues import Cues

METHODS = [name for name in reducers.names() if name != "none" and acts_before_the_decoder(name)]
OFFERED = {
    *("logits", "attention", "mean_keys", "cls_attention", "received", "sizes", "earlier", "following"),
    *("features", "sensitivity", "prompt", "clip_text", "clip_tokens"),
}
HUGE = 65504.0  # the largest FP16 number: no activation of an FP16 model exceeds it

cases = st.builds(
    dict,
    seed=st.integers(0, 2**16),
    rows=st.integers(2, 9),
    columns=st.integers(2, 9),
    share=st.floats(0, 1),
    has_cls=st.booleans(),
)


def inputs_of(method, case, batch=1):
    grid = (case["rows"], case["columns"])
    n = grid[0] * grid[1]
    least = least_keep(method, n, case["has_cls"])
    keep = least + round(case["share"] * (n - least))
    return random_inputs(case["seed"], grid=grid, channels=16, has_cls=case["has_cls"], batch=batch), keep


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_exactly_k_tokens_ascending_distinct_in_range(method, case):
    inputs, keep = inputs_of(method, case)
    tokens, indices = computed(method, inputs, keep)
    n = inputs.tokens.shape[1]

    assert tokens.shape == (1, keep, 16)
    assert indices.shape == (1, keep)
    assert indices.dtype == torch.int64
    assert ((indices >= 0) & (indices < n)).all()
    assert (indices.diff(dim=1) > 0).all()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_a_batch_equals_a_loop(method, case):
    inputs, keep = inputs_of(method, case, batch=3)
    together = run(method, inputs, keep)
    for i in range(3):
        parts = (t[i : i + 1] for t in (inputs.tokens, inputs.queries, inputs.keys, inputs.positions))
        own = Inputs(*parts, inputs.grid, inputs.has_cls)
        alone = run(method, own, keep)
        tokens, indices = together.tokens[i : i + 1], together.indices[i : i + 1]
        if method in TIES and not torch.equal(indices, alone.indices):
            of_batch = Result(tokens, indices, [order[i : i + 1] for order in together.orders])
            ties = [assert_right(method, own, keep, result)[0] for result in (of_batch, alone)]
            assert any(ties)
            continue

        assert torch.equal(indices, alone.indices)
        torch.testing.assert_close(tokens, alone.tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(case=cases)
def test_the_same_input_gives_the_same_output(method, case):
    inputs, keep = inputs_of(method, case)
    first, second = computed(method, inputs, keep), computed(method, inputs, keep)

    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1.0, HUGE, -HUGE, 1e-30], ids=str)
@pytest.mark.parametrize("keep", [1, 5, 15])
def test_constant_zero_and_huge_inputs_stay_finite(method, value, keep):
    keep = max(keep, least_keep(method, 16, True))
    shape = (1, 17, 16)
    same = torch.full(shape, value)
    inputs = Inputs(same[:, 1:], same, same, torch.arange(16)[None], (4, 4))
    tokens, indices = computed(method, inputs, keep)

    assert tokens.isfinite().all()
    assert indices.unique().numel() == keep


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-6, 1.0, 1e3, HUGE / 6]))
def test_random_inputs_of_any_scale_stay_finite(method, seed, scale):
    inputs = random_inputs(seed, grid=(5, 5), channels=16)
    scaled = Inputs(
        inputs.tokens * scale, inputs.queries * scale, inputs.keys * scale, inputs.positions, inputs.grid
    )
    keep = max(9, least_keep(method, 25, True))
    tokens, indices = computed(method, scaled, keep)

    assert tokens.isfinite().all()
    assert indices.unique().numel() == keep


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reads_only_the_cues_it_declares(method):
    inputs = random_inputs(0, grid=(6, 6), channels=16)
    for has_cls in (True, False):
        read = set()

        class Spy(Cues):
            def __getattribute__(self, name, read=read):
                if name in OFFERED:
                    read.add(name)
                return super().__getattribute__(name)

        first = 0 if has_cls else 1
        shown = replace(
            inputs, queries=inputs.queries[:, first:], keys=inputs.keys[:, first:], has_cls=has_cls
        )
        reducer = reducers.get(method)
        keep = max(9, least_keep(method, 36, has_cls))
        spy = shown.cues(Spy)
        read.clear()
        reducer.apply(inputs.tokens, spy, keep, reducer.parse_options({}))

        assert read <= reducer.cues


@pytest.mark.parametrize("method", METHODS)
def test_ties_go_to_the_lower_index(method):
    """Equal tokens score equally: what differs between backends must not decide.

    64 of them: a product's last rows, where their number is no multiple of a vector, are rounded in another way.
    """
    same = torch.ones(1, 65, 16)
    inputs = Inputs(same[:, 1:], same, same, torch.arange(64)[None], (8, 8))
    keep = max(9, least_keep(method, 64, True))
    first = computed(method, inputs, keep)[1]

    assert torch.equal(first, computed(method, inputs, keep)[1])
    if method == "g-prune":
        assert first[0].tolist() == list(range(9))
