"""Bundles that are damaged, incomplete or not bundles: refused before they answer wrongly."""

import json

import pytest
from cli_tools import copied, edit_json, flip_a_bit

from fico_export.bundle import files

RUN = ["--prompt", "hi", "--max-new-tokens", 1]
WEIGHTS = "onnx/decoder_model_merged.onnx_data"


@pytest.fixture
def own(bundle, tmp_path):
    """A bundle to damage."""
    return copied(bundle, tmp_path / "own")


def test_a_folder_that_is_no_bundle_is_refused(fico, tmp_path, checkpoint):
    for folder in (tmp_path / "nowhere", tmp_path, checkpoint, checkpoint / "config.json"):
        fico("run", folder, *RUN).refuses("is no bundle", "manifest.json", "fico-export")
        fico("inspect", folder).refuses("is no bundle")
        fico("verify", folder).refuses("is no bundle")


def test_a_changed_small_file_stops_every_command(fico, own):
    flip_a_bit(own / "tokenizer.json")

    for command in (["run", own, *RUN], ["inspect", own, "--check"], ["verify", own]):
        fico(*command).refuses("tokenizer.json does not have the SHA-256", "copy or export the bundle again")


def test_a_changed_large_file_stops_what_hashes_everything(fico, own, monkeypatch):
    monkeypatch.setattr(files, "QUICK_LIMIT_BYTES", 100_000)
    flip_a_bit(own / WEIGHTS)

    for command in (["inspect", own, "--check"], ["verify", own]):
        fico(*command).refuses(f"{WEIGHTS} does not have the SHA-256", "copy or export the bundle again")
    assert fico("run", own, *RUN).code == 0


def test_a_truncated_large_file_stops_run_too(fico, own, monkeypatch):
    monkeypatch.setattr(files, "QUICK_LIMIT_BYTES", 100_000)
    content = (own / WEIGHTS).read_bytes()
    (own / WEIGHTS).write_bytes(content[:-1])

    fico("run", own, *RUN).refuses(f"{WEIGHTS} has {len(content) - 1} bytes", str(len(content)))


def test_a_missing_file_is_named(fico, own):
    (own / WEIGHTS).unlink()

    fico("run", own, *RUN).refuses(f"{WEIGHTS} is missing", "copy or export the bundle again")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff\xfe", b'{"schema_version": 3}'])
def test_a_damaged_manifest_is_refused(fico, own, content):
    (own / "manifest.json").write_bytes(content)

    fico("run", own, *RUN).refuses("manifest.json is damaged", "export or copy the bundle again")
    fico("inspect", own).refuses("manifest.json is damaged")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"schema_version": "2"}, "schema_version"),
        ({"schema_version": None}, "schema_version"),
        ({"reduction__keep": "many"}, "reduction.keep"),
        ({"decoder": ...}, "decoder"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_with_a_wrong_value_names_it(fico, own, change, word):
    edit_json(own / "manifest.json", **change)

    fico("run", own, *RUN).refuses(f"manifest.json is damaged: {word}", "export or copy the bundle again")


@pytest.mark.parametrize(
    "change",
    [{"graphs__vision_encoder": ...}, {"files": {}}, {"embedding__file": "onnx/other"}],
)
def test_what_the_manifest_does_not_vouch_for_is_not_run(fico, own, change):
    edit_json(own / "manifest.json", **change)

    fico("run", own, *RUN).refuses("lists no ", "with its hash")


def test_a_manifest_of_a_newer_schema_says_to_update(fico, own):
    edit_json(own / "manifest.json", schema_version=99, new_in_99={})

    for command in (["run", own, *RUN], ["inspect", own], ["verify", own]):
        fico(*command).refuses("schema version 99", "reads 5", "git pull && pip install .")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_manifest_of_an_older_schema_says_to_export_again(fico, own, version):
    edit_json(own / "manifest.json", schema_version=version)

    for command in (["run", own, *RUN], ["inspect", own], ["verify", own]):
        fico(*command).refuses(f"schema version {version}", "reads 3 to 5", "export the model again")


def test_an_error_is_one_json_object_where_json_was_asked_for(fico, own):
    flip_a_bit(own / "tokenizer.json")

    for command in (["run", own, *RUN], ["inspect", own, "--check"], ["verify", own]):
        outcome = fico(*command, "--json")
        assert outcome.code == outcome.json["exit"] == 2
        assert outcome.json.keys() == {"error", "hint", "exit"}


def test_verify_says_where_to_tell_it_that_the_checkpoint_has_moved(fico, own, tiny_checkpoint, tmp_path):
    moved = copied(tiny_checkpoint, tmp_path / "moved")
    edit_json(own / "manifest.json", model__source=str(tmp_path / "before"))

    fico("verify", own).refuses(f"no longer at {tmp_path / 'before'}", "--model FOLDER")
    assert fico("verify", own, "--model", moved, "--json").json["passed"]


def test_verify_refuses_another_checkpoint_than_the_bundles_own(fico, own, tiny_checkpoint_v5):
    sizes = json.loads((own / "manifest.json").read_text())["model"]["weights"]
    other = (tiny_checkpoint_v5 / "model.safetensors").stat().st_size

    outcome = fico("verify", own, "--model", tiny_checkpoint_v5)

    outcome.refuses(
        "is not the checkpoint", f"{other} bytes", f"{sizes['model.safetensors']} bytes", "--model FOLDER"
    )


@pytest.mark.parametrize("version", [3, 4])
def test_a_manifest_of_an_earlier_schema_is_read(version, fico, own):
    """It has one profile without a name, and in 3 it says nothing of the request."""
    content = json.loads((own / "manifest.json").read_text()) | {"schema_version": version, "image_size": 112}
    for key in ("profiles", "layout", *(["request"] if version == 3 else [])):
        del content[key]
    content["reduction"] |= {"grid": [8, 8], "kept_aside": 0}
    (own / "manifest.json").write_text(json.dumps(content))

    assert fico("inspect", own, "--check").code == 0
