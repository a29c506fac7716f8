"""Bundles to measure, and the command."""

import pytest
from cli_tools import in_this_process


@pytest.fixture
def fico(capsys):
    """fico(*arguments) → Outcome."""
    return lambda *arguments: in_this_process(capsys, "fico", *arguments)


@pytest.fixture
def reduced(make_bundle, tiny_checkpoint):
    """16 of 64 visual tokens. Shared: copy it to change it."""
    return make_bundle(tiny_checkpoint, 16)


@pytest.fixture
def whole(make_bundle, tiny_checkpoint):
    """All 64 of them."""
    return make_bundle(tiny_checkpoint, verify=False)
