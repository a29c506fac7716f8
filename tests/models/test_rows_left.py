"""Which rows are left once visual tokens are dropped, against a loop over the rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fico_export.models.decoders.rows_left import missing, rows_left


def looped(rows, visual, kept):
    """(rows that are left [T], where the kept tokens stand now [K]) of a list of rows, by deleting."""
    gone = {int(row) for j, row in enumerate(visual) if j not in set(kept)}
    left = [row for row in range(rows) if row not in gone]
    return left, [left.index(int(visual[j])) for j in kept]


def check(rows, visual, kept):
    """All that `rows_left` says of them, and the rows of the kept tokens for what acts next."""
    found = rows_left(torch.tensor([visual]), torch.tensor([kept]), rows)
    source, now = looped(rows, visual, kept)

    assert found.source.dtype == found.visual.dtype == torch.int64
    assert found.source[0].tolist() == source
    assert found.visual[0].tolist() == now
    assert np.flatnonzero(found.is_kept[0]).tolist() == now
    assert found.nth[0][found.visual[0]].tolist() == list(range(len(kept)))
    others = torch.arange(rows, dtype=torch.float32)[None, :, None]
    merged = -1.0 - torch.arange(len(kept), dtype=torch.float32)[None, :, None]
    expected = [-1.0 - now.index(t) if t in now else float(row) for t, row in enumerate(source)]
    assert found.put(merged, others)[0, :, 0].tolist() == expected
    return source, now


@pytest.mark.parametrize(
    ("rows", "visual", "kept"),
    [
        (9, [2, 3, 4, 5], [1, 2]),  # one run
        (12, [1, 2, 5, 6, 9], [0, 3]),  # text between
        (12, [1, 2, 5, 6, 9], [4]),
        (6, [0, 2, 5], [0, 2]),  # the first and the last row
        (6, [0, 2, 5], [1]),
        (5, [0, 1, 2, 3, 4], [2]),  # nothing else
        (7, [1, 3, 5], [0, 1, 2]),  # all are kept
    ],
)
def test_rows_are_those_that_a_loop_leaves(rows, visual, kept):
    check(rows, visual, kept)


@st.composite
def cases(draw):
    """Rows, which of them are visual, and which of these are left after each of two reductions."""
    rows = draw(st.integers(1, 24))
    visual = sorted(draw(st.sets(st.integers(0, rows - 1), min_size=1)))
    first = sorted(draw(st.sets(st.integers(0, len(visual) - 1), min_size=1)))
    second = sorted(draw(st.sets(st.integers(0, len(first) - 1), min_size=1)))
    return rows, visual, first, second


@settings(max_examples=150, deadline=None)
@given(cases())
def test_two_reductions_one_after_the_other_leave_what_one_of_both_leaves(case):
    rows, visual, first, second = case
    source, now = check(rows, visual, first)
    again, after = check(len(source), now, second)

    left, where = looped(rows, visual, [first[j] for j in second])
    assert [source[row] for row in again] == left
    assert after == where


def test_rows_of_a_batch_are_each_their_own():
    visual, kept = torch.tensor([[0, 2, 4], [1, 2, 3]]), torch.tensor([[1, 2], [0, 2]])
    found = rows_left(visual, kept, 6)

    for row in range(2):
        source, now = looped(6, visual[row].tolist(), kept[row].tolist())
        assert found.source[row].tolist() == source
        assert found.visual[row].tolist() == now


def test_what_is_missing_is_what_is_not_among_them():
    assert missing(torch.tensor([[0, 3, 4]]), 7)[0].tolist() == [1, 2, 5, 6]
    assert missing(torch.tensor([[2]]), 3)[0].tolist() == [0, 1]
