"""docs/add-a-backend.md to the letter: its file is listed, is typed, and answers token for token as ONNX Runtime does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import in_this_process

import fico_export
from fico_export.runtime import backends

ROOT = Path(__file__).parents[2]
(SOURCE,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/add-a-backend.md").read_text(), re.DOTALL)


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The file in a folder of its own, which the registry reads too."""
    (tmp_path / "onnx_reference.py").write_text(SOURCE)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    yield tmp_path / "onnx_reference.py"
    sys.modules.pop("fico_export.runtime.backends.onnx_reference", None)


def test_the_backend_of_the_guide_answers_as_onnx_runtime_does(
    added, capsys, make_bundle, tiny_checkpoint, photographs, tmp_path
):
    bundle = make_bundle(tiny_checkpoint, 16)
    photographs[0].save(tmp_path / "photo.png")
    line = [
        "run",
        bundle,
        "--image",
        tmp_path / "photo.png",
        "--prompt",
        "What?",
        "--max-new-tokens",
        6,
        "--json",
    ]
    got, want = (
        in_this_process(capsys, "fico", *line, "--backend", name) for name in ("onnx-reference", "ort-cpu")
    )

    assert (got.code, want.code) == (0, 0), got.err
    assert got.json["token_ids"] == want.json["token_ids"]
    assert "onnx-reference" in in_this_process(capsys, "fico", "list", "backends").out


def test_a_conversation_goes_on_from_its_cache(added, make_bundle, tiny_checkpoint, photographs):
    chats = [
        fico_export.load(make_bundle(tiny_checkpoint, 16), backend=name).chat()
        for name in ("onnx-reference", "ort-cpu")
    ]
    for question, shown in (("What?", photographs[:1]), ("And what else?", [])):
        got, want = (chat.ask(question, shown, max_new_tokens=4) for chat in chats)

        assert got.token_ids == want.token_ids
        assert got.cached_tokens == want.cached_tokens


def test_it_refuses_what_it_does_not_run(added, capsys, make_bundle, tiny_checkpoint):
    bundle = make_bundle(tiny_checkpoint, 16, precision="fp16", verify=False)
    asked = in_this_process(capsys, "fico", "run", bundle, "--prompt", "hi", "--backend", "onnx-reference")

    asked.refuses("runs portable FP32 bundles", "--backend ort-cpu")


def test_the_file_passes_the_checks_of_the_house(added):
    for tool in (["ruff", "check"], ["ruff", "format", "--check", "--diff"]):
        line = [sys.executable, "-m", *tool, "--config", str(ROOT / "pyproject.toml"), str(added)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
