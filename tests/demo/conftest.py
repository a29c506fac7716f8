"""Bundles of the demo, made once."""

import pytest

from fico_export import reducers


@pytest.fixture(scope="session")
def demo_full(make_bundle):
    """All 576 visual tokens, FP32."""
    return make_bundle("demo", method="none")


@pytest.fixture(scope="session")
def demo_reduced(make_bundle):
    """64 visual tokens by the default method, FP32."""
    return make_bundle("demo", 64, method=reducers.DEFAULT)
