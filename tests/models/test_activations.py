"""Activations by name against transformers'."""

import pytest
import torch
from transformers.activations import ACT2FN

from fico_export.models.activations import ACTIVATIONS


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_it_is_what_transformers_has_under_the_name(name):
    x = torch.linspace(-6, 6, 1001)

    torch.testing.assert_close(ACTIVATIONS[name]()(x), ACT2FN[name](x), rtol=1e-6, atol=1e-6)
