"""Which sequences run together, where their caches go for it, and what a graph is given: pure functions."""

from types import SimpleNamespace

import numpy as np
import pytest

from fico_export.runtime.backends.base import Step
from fico_export.runtime.backends.slots import moves
from fico_export.runtime.backends.steps import inputs, runs


def test_three_axes_of_position_ids():
    """A graph of one axis takes [B, S]; of three, [A, B, S]."""
    step = Step(None, np.ones((2, 4), np.float32), np.array([[5, 6], [7, 8], [9, 10]]))
    given = inputs([step], [1], 3, np.dtype(np.float32))

    assert given["position_ids"].shape == (3, 3, 2)
    assert given["position_ids"][:, 1].tolist() == step.positions.tolist()
    assert given["inputs_embeds"].sum() == 8
    one = inputs([step._replace(positions=step.positions[:1])], [0], 1, np.dtype(np.float16))
    assert one["position_ids"].tolist() == [[5, 6]]


def test_runs_of_single_tokens_and_of_prompts():
    def step(count, pool):
        return Step(SimpleNamespace(pool=pool), np.zeros((count, 2)), np.zeros((1, count), np.int64))

    steps = [step(1, "a"), step(5, "a"), step(1, "b"), step(1, "a"), step(1, "a")]
    found = runs(steps, 2, lambda cache: cache.pool, lambda count: [3, count - 3])

    assert found == [([1], [3, 2]), ([0, 3], [1]), ([4], [1]), ([2], [1])]


@pytest.mark.parametrize(
    ("pools", "moved"),
    [
        ([(4, 0)], 0),
        ([(1, 3), (3, 1)], 1),  # running, vacant
        ([(2, 0), (2, 0)], 0),  # full of caches that rest
        ([(4, 0), (4, 0), (1, 3)], 0),  # nine take three runs wherever they are
        ([(1, 1), (1, 1), (1, 2)], 2),
    ],
)
def test_caches_move_where_that_saves_a_run(pools, moved):
    running = []
    for count, vacant in pools:
        pool = SimpleNamespace(vacant=vacant)
        running += [SimpleNamespace(pool=pool) for _ in range(count)]

    assert len(moves(running, 4)) == moved
