"""What of running engines is arithmetic: profiles, pieces of a prompt, and where new rows go, against loops over arrays."""

import numpy as np
import pytest

from fico_export.runtime.backends.trt.placement import Layout, placed
from fico_export.runtime.backends.trt.profiles import choose_profile, chunk_sizes, largest


def shape(tokens):
    return {"inputs_embeds": (1, tokens, 32), "past_lengths": (1,)}


def profile(least, most):
    return {
        "inputs_embeds": ((1, least, 32), (1, most, 32)),
        "past_lengths": ((1,), (1,)),
        "past_key_values.0.key": ((1, 2, 64, 16), (1, 2, 64, 16)),
    }


@pytest.mark.parametrize(
    ("profiles", "tokens", "expected"),
    [
        ([(1, 512)], 1, 0),
        ([(1, 512)], 512, 0),
        ([(1, 512)], 513, None),
        ([(1, 512)], 0, None),
        ([(1, 1), (1, 512)], 1, 0),
        ([(1, 512), (1, 1)], 1, 1),
        ([(1, 1), (1, 512)], 2, 1),
        ([(1, 1), (16, 512)], 8, None),
    ],
)
def test_the_narrowest_profile_that_takes_a_shape_is_chosen(profiles, tokens, expected):
    assert choose_profile([profile(*limits) for limits in profiles], shape(tokens)) == expected


def test_the_largest_shape_is_that_of_any_profile():
    assert largest([profile(1, 1), profile(1, 512)], "inputs_embeds") == (1, 512, 32)


@pytest.mark.parametrize(
    ("count", "lengths", "expected"),
    [
        (1, [(1, 512)], [1]),
        (512, [(1, 512)], [512]),
        (1300, [(1, 512)], [512, 512, 276]),
        (1025, [(1, 1), (1, 512)], [512, 512, 1]),
        (20, [(1, 1), (16, 512)], [20]),
        (18, [(1, 1), (4, 8)], [8, 8, 1, 1]),
        (3, [(4, 8)], None),
    ],
)
def test_a_prompt_is_cut_into_pieces_that_profiles_take(count, lengths, expected):
    assert chunk_sizes(count, lengths) == expected


def run(copies, to, source):
    """What cudaMemcpy2D does, byte by byte."""
    for copy in copies:
        for row in range(copy.height):
            for byte in range(copy.width):
                a, b = copy.to + row * copy.to_pitch + byte, copy.source + row * copy.source_pitch + byte
                to[a] = source[b]


def tensors(layout, buffer, dim):
    """Views [heads, rows, D] of FP16 numbers in a buffer."""
    return [
        buffer[start : start + layout.heads * rows * dim * 2]
        .view(np.float16)
        .reshape(layout.heads, rows, dim)
        for start, rows in zip(layout.offsets, layout.rows, strict=False)
    ]


@pytest.mark.parametrize(
    "dim", [4, 64]
)  # with gaps between the tensors, for their addresses' sake, and without
@pytest.mark.parametrize(
    ("new", "at"),
    [
        ((1,) * 6, (0,) * 6),
        ((1,) * 6, (9,) * 6),  # the last row
        ((3,) * 6, (5,) * 6),
        ((1,) * 6, (7, 7, 4, 4, 2, 2)),  # a decoder that reduces has another length in each layer
        ((8, 8, 8, 8, 5, 5), (0,) * 6),  # its prefill
        ((2, 2, 0, 0, 1, 1), (0, 0, 3, 3, 4, 4)),
    ],
)
def test_new_rows_go_after_the_old(dim, new, at):
    rng = np.random.default_rng(0)
    cache, rows = Layout(2, dim * 2, (10,) * 6), Layout(2, dim * 2, new)
    to = rng.integers(0, 100, cache.size, np.uint8)
    source = rng.integers(0, 100, rows.size, np.uint8)
    expected = [tensor.copy() for tensor in tensors(cache, to, dim)]
    for old, fresh, first in zip(expected, tensors(rows, source, dim), at, strict=True):
        for row in range(fresh.shape[1]):
            old[:, first + row] = fresh[:, row]

    run(placed(rows, cache, at), to, source)

    assert all(offset % 256 == 0 for offset in (*cache.offsets, *rows.offsets))
    for found, wanted in zip(tensors(cache, to, dim), expected, strict=True):
        np.testing.assert_array_equal(found.view(np.uint16), wanted.view(np.uint16))


def test_a_token_of_a_7b_decoder_is_placed_by_one_copy():
    cache, new = (Layout(32, 128 * 2, (rows,) * 64) for rows in (1024, 1))

    (copy,) = placed(new, cache, [700] * 64)

    assert (copy.width, copy.height) == (256, 64 * 32)
    assert cache.size == 2 * 32 * 32 * 1024 * 128 * 2


def test_a_decoder_that_reduces_is_placed_by_a_copy_for_each_length():
    cache, new = (Layout(32, 128 * 2, (rows,) * 64) for rows in (1024, 1))

    assert len(placed(new, cache, [700] * 4 + [300] * 60)) == 2
