"""Fixtures: checkpoints and bundles are made once a session; GPU tests skip without a GPU, unless told not to."""

import inspect
import os

import pytest
from checkpoints import GRID24, to_public_layout, write_tiny
from clip_checkpoints import write_clip
from PIL import Image
from programs import skipped
from skimage import data
from tracing import traced_once

import fico_export
from fico_export.devices import gpu


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and gpu.count() == 0:
        if os.environ.get("FICO_REQUIRE_GPU") == "1":
            pytest.fail("FICO_REQUIRE_GPU=1, and there is no GPU")
        pytest.skip("needs a CUDA GPU")


def pytest_terminal_summary(terminalreporter):
    """What was not tested on this machine, and what installs it; pytest's own closing line comes after."""
    if lines := skipped(terminalreporter.stats.get("skipped", [])):
        terminalreporter.section("not tested on this machine")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """64 visual tokens, FP16 weights, in the public checkpoints' layout."""
    return to_public_layout(write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="session")
def tiny_checkpoint_v5(tmp_path_factory):
    """The same sizes in FP32 and other weights, as transformers 5 saves it."""
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny-v5", seed=1)


@pytest.fixture(scope="session")
def grid24_checkpoint(tmp_path_factory):
    """A 24×24 tower: 576 visual tokens."""
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "grid24", vision=GRID24, seed=2)


@pytest.fixture(scope="session")
def clip_checkpoint(tmp_path_factory):
    """A CLIP model whose vision tower is as wide as the tiny checkpoints'."""
    return write_clip(tmp_path_factory.mktemp("checkpoint") / "clip")


@pytest.fixture(scope="session", autouse=True)
def _traced_once():
    with traced_once():
        yield


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory):
    """Exports once per set of arguments: make_bundle(checkpoint, keep, **options) → folder of the bundle.

    Whether an argument is left out or given as its default makes no other bundle; nor does `verify=False`, where one was
    verified before.
    """
    made = {}

    def key_of(given, **options):
        arguments = inspect.signature(fico_export.export).bind(*given, **options)
        arguments.apply_defaults()
        return repr(arguments)

    def make(*given, **options):
        key, verified = key_of(given, **options), key_of(given, **options | {"verify": True})
        if verified not in made and key not in made:
            made[key] = fico_export.export(
                *given, out=tmp_path_factory.mktemp("bundle") / "bundle", **options
            )
        return made.get(verified) or made[key]

    return make


@pytest.fixture(scope="session")
def photographs():
    """Five pictures, public domain or free: portrait, landscape, square, grey turned RGB."""
    arrays = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.camera()]
    return [Image.fromarray(array).convert("RGB") for array in arrays]
