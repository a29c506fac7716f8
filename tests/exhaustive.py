"""What takes minutes and seldom finds what the rest does not.

FP16 graphs, engines, and a budget of all tokens but one, of methods that have no operator of their own; FP16 graphs of methods that
only drop, as they score in FP32; and cases that only join what other tests show apart.

FICO_EXHAUSTIVE=1 tests them too.
"""

import os

import pytest

ASKED = os.environ.get("FICO_EXHAUSTIVE") == "1"

# Every operator of their graphs is in that of a method that is not here. A method that is added is not here either.
ALIKE = {
    "cls-topk", "divprune", "evit", "ficoco-vl", "hiprune", "pool", "pyramiddrop", "random", "visionzip", "vispruner", "zooprune",
}  # fmt: skip


def of_each(methods, *rest):
    """Parameters for a test of every method, where those without an operator of their own are left for the exhaustive run."""
    return [exhaustive(name, *rest) if name in ALIKE else pytest.param(name, *rest) for name in methods]


def exhaustive(*values):
    """A case of a parametrised test that only the exhaustive run has."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)
