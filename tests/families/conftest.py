"""LLaVA-NeXT, as most of these tests have it."""

import pytest
from anyres_checkpoints import Theirs, write_next


@pytest.fixture(scope="module")
def checkpoint(shared):
    return shared("next", write_next)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return Theirs(checkpoint)
