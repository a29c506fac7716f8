"""Rules of a generation config whose numbers outgrow a float."""

import warnings

import numpy as np
import torch
from transformers.generation.logits_process import ExponentialDecayLengthPenalty

from fico_export.runtime.logits import length_decay

SCORES = np.array([1.0, -2.0, 0.0, -np.inf, 4.0], np.float32)


def test_a_penalty_of_length_that_outgrows_a_float_ends_the_answer():
    """`generate` raises OverflowError here: the end is what the penalty asks for."""
    ids = np.zeros(2000, np.int64)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = length_decay(ids, SCORES, start=0, factor=1e6, eos_ids=[1])

    assert np.isfinite(result[[0, 1, 2, 4]]).all()
    assert result.argmax() == 1


def test_one_that_does_not_is_transformers_own():
    ids = np.zeros(12, np.int64)
    rule = ExponentialDecayLengthPenalty((2, 1.5), [1, 3], 4)
    theirs = rule(torch.zeros(1, 12, dtype=torch.long), torch.tensor(SCORES)[None])[0].numpy()

    ours = length_decay(ids, SCORES, start=6, factor=1.5, eos_ids=[1])
    np.testing.assert_array_equal(ours[:3], theirs[:3])
