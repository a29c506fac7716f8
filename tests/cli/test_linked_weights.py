"""Bundles whose weights are the checkpoint's own files, hard-linked: right, small, and honest when those files change."""

import errno
import json
import os
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from checkpoints import public_key, write_siglip
from cli_tools import copied, edit_weights, split_weights
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from safetensors.torch import load_file

from fico_export import models
from fico_export.bundle import files
from fico_export.bundle.manifest import Manifest
from fico_export.exporter.links import link_files

LINK = "onnx/model.safetensors"
RUN = ["--prompt", "hi", "--max-new-tokens", 3]
MATRIX = "language_model.model.layers.1.self_attn.o_proj.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
posix = pytest.mark.skipif(os.name != "posix", reason="hard links as POSIX has them")


@pytest.fixture
def linked(make_bundle, tiny_checkpoint, checkpoint, tmp_path):
    """An FP16 bundle linked to an FP16 checkpoint of its own."""
    bundle = copied(make_bundle(tiny_checkpoint, 16, precision="fp16"), tmp_path / "linked")
    (bundle / LINK).unlink()
    os.link(checkpoint / "model.safetensors", bundle / LINK)
    return bundle


@pytest.fixture
def large(monkeypatch):
    """Every file counts as large: hashed only where there is a reason."""
    monkeypatch.setattr(files, "QUICK_LIMIT_BYTES", 0)


def test_matrices_are_the_checkpoints_own_and_the_bundle_is_verified(make_bundle, tiny_checkpoint):
    bundle = make_bundle(tiny_checkpoint, 16, precision="fp16")  # verified against transformers
    tensors = load_file(tiny_checkpoint / "model.safetensors")

    assert (bundle / LINK).samefile(tiny_checkpoint / "model.safetensors")
    for graph in Manifest.load(bundle).graphs.values():
        seen = _external(bundle / graph.file)
        for name, (location, stored) in seen.items():
            if location == "model.safetensors":
                assert (stored == tensors[public_key(name)].numpy()).all()
        matrices = [name for name, (_, stored) in seen.items() if stored.ndim >= 2]
        assert matrices
        assert all(seen[name][0] == "model.safetensors" for name in matrices)
    written = sum(p.stat().st_size for p in bundle.rglob("*.onnx_data"))
    assert written < 0.1 * (bundle / LINK).stat().st_size


def test_tied_names_share_one_place_and_shards_keep_their_names(tmp_path):
    folder = write_siglip(tmp_path / "siglip")
    split_weights(folder)
    model = models.load(folder)
    (tmp_path / "onnx").mkdir()
    links = link_files(model.checkpoint, model.shapes, ir.DataType.FLOAT, tmp_path / "onnx")

    assert {p.name for p in links.paths} == {p.name for p in folder.glob("*.safetensors")}
    assert all(path.samefile(folder / path.name) for path in links.paths)
    names = ("language_model.embed_tokens.weight", "lm_head.weight")
    table, head = (links.tensor(model.checkpoint.tensors[n], ir.DataType.FLOAT, n) for n in names)
    assert (table.location, table.offset) == (head.location, head.offset)
    stored = load_file(folder / table.location)
    (expected,) = (tensor for key, tensor in stored.items() if key.endswith("embed_tokens.weight"))
    linked = np.fromfile(links.folder / head.location, np.float32, expected.numel(), offset=head.offset)
    assert (linked.reshape(head.shape.numpy()) == expected.numpy()).all()


@pytest.mark.parametrize("other", ["--copy-weights", "another file system"])
def test_where_nothing_is_linked_the_weights_are_written(
    export, out, checkpoint, embedding_only, monkeypatch, other
):
    def link(*given, **options):
        raise OSError(errno.EXDEV, "another file system")

    arguments = [other] if other.startswith("--") else monkeypatch.setattr(os, "link", link) or []
    assert export("--keep", 4, "--precision", "fp16", "--no-verify", *arguments, model=checkpoint).code == 0

    assert not list(out.rglob("*.safetensors"))
    (location, table), *_ = _external(out / "onnx/embed_tokens_fp16.onnx").values()
    assert location == "embed_tokens_fp16.onnx_data"
    assert (table == load_file(checkpoint / "model.safetensors")[EMBEDDING].numpy()).all()


def test_bf16_is_converted_where_the_target_has_none(export, out, checkpoint, embedding_only):
    edit_weights(checkpoint, lambda t: {k: v.to(torch.bfloat16) for k, v in t.items()})
    assert export("--keep", 4, "--precision", "fp16", "--no-verify", model=checkpoint).code == 0

    expected = load_file(checkpoint / "model.safetensors")[EMBEDDING].to(torch.float16)
    (location, table), *_ = _external(out / "onnx/embed_tokens_fp16.onnx").values()
    assert location == "embed_tokens_fp16.onnx_data"
    assert (table == expected.numpy()).all()


def test_only_what_will_be_written_needs_room(export, checkpoint, embedding_only, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100_000, 0, 100_000))
    fp16 = ["--keep", 4, "--precision", "fp16", "--no-verify"]

    export(*fp16, "--copy-weights", model=checkpoint).refuses("the bundle needs", "checkpoint's own")
    assert export(*fp16, model=checkpoint).code == 0


@posix
def test_a_checkpoint_that_changes_underneath_is_noticed_and_named(fico, linked, checkpoint, large):
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")

    for command in (["run", linked, *RUN], ["verify", linked], ["inspect", linked, "--check"]):
        fico(*command).refuses(LINK, "hard link to the checkpoint's own file", "--copy-weights")


@posix
def test_a_checkpoint_that_was_only_touched_still_runs(fico, linked, checkpoint, large):
    os.utime(checkpoint / "model.safetensors")
    touched = (checkpoint / "model.safetensors").stat().st_mtime_ns

    assert fico("run", linked, *RUN).code == 0
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == touched


def test_a_checkpoint_that_is_deleted_or_downloaded_anew_changes_nothing(fico, linked, checkpoint, large):
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").write_bytes(content[::-1])

    assert fico("run", linked, *RUN).code == 0


def test_a_copied_bundle_is_hashed_once_then_trusted(fico, linked, tmp_path, large, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(linked, copy, copy_function=shutil.copyfile)  # new times, as `cp -r` gives
    assert (copy / LINK).stat().st_mtime_ns != (linked / LINK).stat().st_mtime_ns
    hashed = []
    sha256 = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path, *rest: hashed.append(path.name) or sha256(path, *rest))

    assert fico("run", copy, *RUN).code == 0
    assert hashed == ["model.safetensors"]
    assert fico("run", copy, *RUN).code == 0
    assert len(hashed) == 1


def test_a_damaged_copy_is_refused(fico, linked, tmp_path, large):
    copy = tmp_path / "copy"
    shutil.copytree(linked, copy, copy_function=shutil.copyfile)
    with (copy / LINK).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")

    fico("run", copy, *RUN).refuses(f"{LINK} does not have the SHA-256", "copy or export the bundle again")


def test_nan_that_was_linked_unread_never_passes_verification(fico, linked, checkpoint):
    """As if it had been there at the export, which does not read what it links."""
    file = checkpoint / "model.safetensors"
    content, matrix = file.read_bytes(), load_file(file)[MATRIX]
    stored = matrix.numpy().tobytes()
    assert content.count(stored) == 1
    file.unlink()
    file.write_bytes(content.replace(stored, np.full_like(matrix.numpy(), np.nan).tobytes()))
    (linked / LINK).unlink()
    os.link(file, linked / LINK)
    changed = {"sha256": files.sha256(file), "size": file.stat().st_size, "mtime_ns": file.stat().st_mtime_ns}
    manifest = json.loads((linked / "manifest.json").read_text())
    manifest["files"][LINK] = changed
    (linked / "manifest.json").write_text(json.dumps(manifest))

    verified = fico("verify", linked, "--model", checkpoint, "--json")

    assert verified.code == 1
    statuses = {(check["graph"], check["metric"]): check["status"] for check in verified.json["checks"]}
    assert statuses["decoder_model_merged", "cosine"] == "failed"


def _external(path):
    """Name → where it lies, and what is there, of every tensor of a graph that lies outside it."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            count = int(np.prod(tensor.dims))
            data = np.fromfile(path.parent / info.location, dtype, count, offset=info.offset)
            found[tensor.name] = info.location, data.reshape(tensor.dims)
    return found
