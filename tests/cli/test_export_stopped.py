"""Exports that stop half-way, by a full disk, a signal or a graph that is wrong: nothing half-written remains."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from cli_tools import command_line, copied, started
from onnx_ir import tensor_adapters

from fico_export.bundle.output import written_folder
from fico_export.exporter import weights

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def test_a_disk_without_room_is_refused_before_anything_is_written(refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 1000, 0))

    refused("--keep", 4, words=["the bundle needs", "0.0 GB free", "--out a folder on another disk"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_nothing(refused, embedding_only, monkeypatch, number):
    def save(model, path, progress):
        path.with_suffix(".onnx_data").write_bytes(b"half of it")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(weights, "save", save)

    refused("--keep", 4, words=["filled up; nothing was kept", "free some space"])


@posix
def test_a_file_that_cannot_grow_is_a_full_disk_too(refused, embedding_only):
    """A real limit, below the 131 kB of the embedding table; Python ignores its signal, so that writing fails."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        refused("--keep", 4, words=["filled up; nothing was kept", "free some space"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_overwrite_that_fails_keeps_the_old_bundle(export, fico, out, bundle, embedding_only, monkeypatch):
    def save(model, path, progress):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(weights, "save", save)
    out.parent.mkdir()
    copied(bundle, out)

    export("--keep", 4, "--overwrite").refuses("filled up")

    assert list(out.parent.iterdir()) == [out]
    assert fico("inspect", out, "--check", "--json").json["reduction"]["keep"] == 16


def test_a_bundle_that_was_set_aside_when_its_export_was_killed_gets_its_name_back(export, fico, out, bundle):
    """Killed for real, when the old bundle is set aside and the new not yet in its place."""
    out.parent.mkdir()
    copied(bundle, out)
    code = (
        "import os, sys; from pathlib import Path; from fico_export.bundle import belongings, output\n"
        "output.require_bundle = lambda found, shown: os._exit(9) if found.name == 'old' else None\n"
        "with output.written_folder(Path(sys.argv[1]), overwrite=True): pass"
    )
    assert subprocess.run([sys.executable, "-c", code, out], check=False).returncode == 9
    assert not out.exists()

    export("--keep", 4).refuses(f"{out} exists")

    assert list(out.parent.iterdir()) == [out]
    assert fico("inspect", out, "--check").code == 0


def test_a_graph_that_computes_something_else_is_not_kept(export, out, monkeypatch):
    class Shifted(tensor_adapters.TorchTensor):
        def __init__(self, tensor, name):
            super().__init__(
                tensor * 1.05 if name == "multi_modal_projector.linear_1.weight" else tensor, name=name
            )

    monkeypatch.setattr(weights.tensor_adapters, "TorchTensor", Shifted)

    export("--keep", 4).refuses("vision_encoder: max abs error is ", "not at most ", code=1)

    assert not out.parent.exists()


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(out, tiny_checkpoint, number):
    process = _start_export(tiny_checkpoint, out)
    process.send_signal(number)
    printed, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert printed == ""
    assert "interrupted; nothing half-written remains" in said
    assert "Traceback" not in said
    assert not out.parent.exists()


@posix
def test_the_next_export_removes_what_a_killed_one_left(export, out, tiny_checkpoint, embedding_only):
    """The links to the checkpoint too, and nothing of the checkpoint itself."""
    weights = (tiny_checkpoint / "model.safetensors").read_bytes()
    process = _start_export(tiny_checkpoint, out, "--precision", "fp16")
    process.kill()
    process.communicate(timeout=60)
    assert [p.name.startswith(".bundle.partial-") for p in out.parent.iterdir()] == [True]

    assert export("--keep", 4, "--no-verify").code == 0
    assert list(out.parent.iterdir()) == [out]
    assert (tiny_checkpoint / "model.safetensors").read_bytes() == weights


@posix
def test_an_export_under_way_elsewhere_keeps_its_files(export, out, embedding_only):
    with written_folder(out, overwrite=False) as others:
        (others / "half").write_text("half of it")

        assert export("--keep", 4, "--no-verify").code == 0
        assert (others / "half").exists()
        shutil.rmtree(out)
    assert list(out.parent.iterdir()) == [out]


def _start_export(checkpoint, out, *arguments):
    """An export in a process of its own that has begun to write."""
    line = command_line(
        "fico-export", "--model", checkpoint, "--keep", 4, "--out", out, "--no-verify", *arguments
    )
    process = started(line)
    deadline = time.monotonic() + 60
    while not out.parent.exists() or not any(out.parent.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process
