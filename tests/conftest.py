"""Fixtures: checkpoints and bundles are made once a session; GPU tests skip without a GPU, unless told not to."""

import gc
import hashlib
import inspect
import os
from pathlib import Path

import exhaustive
import pytest
from checkpoints import GRID24, to_public_layout, write_tiny
from clip_checkpoints import write_clip
from filelock import FileLock
from PIL import Image
from programs import skipped
from skimage import data
from tracing import traced_once

import fico_export
from fico_export.devices import gpu


def pytest_collection_finish():
    """What is imported by now stays: to look through it for garbage, again and again, takes time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_configure():
    """A core for each worker: the threads of ONNX Runtime, one for each core it sees, would spin in each other's way."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


# What they test is slow by its nature: graphs are traced, engines compiled, processes and whole installs started.
SLOW_FOLDERS = ("demo", "deploy", "engine", "export", "parity", "profile", "project")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark as slow what exports a bundle, and all of some folders: `-m "not slow"` is what to run after each edit.

    And leave out what only the exhaustive run has.
    """
    left = [item for item in items if item.get_closest_marker("exhaustive") and not exhaustive.ASKED]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in SLOW_FOLDERS or {"make_bundle", "export"} & {*item.fixturenames}:
            item.add_marker(pytest.mark.slow)


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
def shared(tmp_path_factory, worker_id):
    """shared(name, make) → a folder that `make(folder)` fills once for all workers; nobody changes it.

    `shared.made(name)` says whether one of them has filled it.
    """
    own = tmp_path_factory.getbasetemp()
    root = (own if worker_id == "master" else own.parent) / "shared"
    root.mkdir(exist_ok=True)

    def once(name, make):
        folder, whole = root / name, root / f"{name}.whole"
        with FileLock(root / f"{name}.lock"):
            if not whole.exists():
                make(folder)
                whole.touch()
        return folder

    once.made = lambda name: (root / f"{name}.whole").exists()
    return once


@pytest.fixture(scope="session")
def tiny_checkpoint(shared):
    """64 visual tokens, FP16 weights, in the public checkpoints' layout."""
    return shared("tiny", lambda folder: to_public_layout(write_tiny(folder)))


@pytest.fixture(scope="session")
def tiny_checkpoint_v5(shared):
    """The same sizes in FP32 and other weights, as transformers 5 saves it."""
    return shared("tiny-v5", lambda folder: write_tiny(folder, seed=1))


@pytest.fixture(scope="session")
def grid24_checkpoint(shared):
    """A 24×24 tower: 576 visual tokens."""
    return shared("grid24", lambda folder: write_tiny(folder, vision=GRID24, seed=2))


@pytest.fixture(scope="session")
def shallow24_checkpoint(shared):
    """576 visual tokens of a tower with few layers, for each takes time to trace."""
    return shared("shallow24", lambda folder: write_tiny(folder, vision=GRID24 | {"num_hidden_layers": 4}))


@pytest.fixture(scope="session")
def clip_checkpoint(shared):
    """A CLIP model whose vision tower is as wide as the tiny checkpoints'."""
    return shared("clip", write_clip)


@pytest.fixture(scope="session", autouse=True)
def _traced_once(shared):
    with traced_once(shared):
        yield


@pytest.fixture(scope="session")
def make_bundle(shared):
    """Exports once per set of arguments, for all workers: make_bundle(checkpoint, keep, **options) → folder of the bundle.

    Whether an argument is left out or given as its default makes no other bundle; nor does `verify=False`, where one was
    verified before.
    """

    def key_of(given, options):
        arguments = inspect.signature(fico_export.export).bind(*given, **options)
        arguments.apply_defaults()
        return f"bundle-{hashlib.sha256(repr(arguments).encode()).hexdigest()[:16]}"

    def make(*given, **options):
        key = key_of(given, options | {"verify": True})
        if not shared.made(key):
            key = key_of(given, options)
        folder = shared(key, lambda folder: fico_export.export(*given, out=folder / "bundle", **options))
        return folder / "bundle"

    return make


@pytest.fixture(scope="session")
def photographs():
    """Five images, public domain or free: portrait, landscape, square, grey turned RGB."""
    arrays = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.camera()]
    return [Image.fromarray(array).convert("RGB") for array in arrays]
