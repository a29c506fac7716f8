"""The checkpoints that several of these tests have: LLaVA-NeXT, both Qwen-VL, and the families of equal tiles."""

import pytest
from anyres_checkpoints import Theirs, write_next
from qwen_checkpoints import KINDS, Qwen, write_qwen
from tiled_checkpoints import Tiled, write_tiled


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


@pytest.fixture(scope="session")
def tileds(shared):
    """tileds(name) → what `Tiled` has of a SmolVLM, an Idefics3 or an InternVL."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Tiled(name, shared(name, lambda folder: write_tiled(folder, name)))
        return made[name]

    return get


@pytest.fixture(scope="session", params=["smolvlm", "internvl"])
def tiled(request, tileds):
    """SmolVLM, then InternVL."""
    return tileds(request.param)
