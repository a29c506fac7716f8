"""The checkpoints that several of these tests have: LLaVA-NeXT, and both Qwen-VL."""

import pytest
from anyres_checkpoints import Theirs, write_next
from qwen_checkpoints import KINDS, Qwen, write_qwen


@pytest.fixture(scope="module")
def checkpoint(shared):
    return shared("next", write_next)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return Theirs(checkpoint)


@pytest.fixture(scope="session")
def qwens(shared):
    """qwens(family) → what `Qwen` has of it."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = Qwen(family, shared(family, lambda folder: write_qwen(folder, family)))
        return made[family]

    return get


@pytest.fixture(scope="session", params=KINDS)
def qwen(request, qwens):
    """Qwen2.5-VL, then Qwen3-VL."""
    return qwens(request.param)
