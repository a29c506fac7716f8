"""`scripts/bench_scale.py` on a tiny model: every number is there, memory is that of the whole process tree."""

import json
import subprocess
import sys
import time

import bench_scale
import random_models
import torch
from safetensors import safe_open

from fico_export import models


def test_a_random_checkpoint_is_a_llava_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(random_models, "SHARD_BYTES", 1e6)
    random_models.write_checkpoint(tmp_path / "tiny", "tiny")
    assert len(list((tmp_path / "tiny").glob("*.safetensors"))) > 1
    model = models.load(tmp_path / "tiny")

    assert (model.profile.patch_grid, model.decoder_config.kv_heads, model.decoder_config.context) == (
        (8, 8),
        2,
        4096,
    )
    with safe_open(next((tmp_path / "tiny").glob("*.safetensors")), "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118  # no iterator


def test_a_gguf_holds_the_bytes_that_its_header_announces(tmp_path):
    path = tmp_path / "tiny.gguf"
    random_models.write_gguf(path, "tiny")
    text = random_models.TEXT["tiny"]
    matrices = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 352 * 128
    weights = 4 * (matrices * 18 // 32 + 2 * 4 * 128) + 2 * 512 * 128 * 18 // 32 + 4 * 128
    content = path.read_bytes()

    assert content[:4] == b"GGUF"
    assert int.from_bytes(content[8:16], "little") == 3 + 9 * text["num_hidden_layers"]
    assert weights < len(content) < weights + 4096


def test_one_command_measures_a_bundle(tiny_checkpoint_v5, make_bundle, monkeypatch, capsys):
    bundle = make_bundle(tiny_checkpoint_v5, 16, target="ort", verify=False)
    monkeypatch.delenv("LLAMA_CPP_BIN", raising=False)
    line = [
        "bench_scale.py",
        "--bundle",
        str(bundle),
        "--size",
        "tiny",
        "--prompts",
        "5,9",
        "--new-tokens",
        "3",
    ]
    monkeypatch.setattr(sys, "argv", [*line, "--repeats", "1", "--json"])
    bench_scale.main()
    found = json.loads(capsys.readouterr().out)["fico_export"]

    assert {"load s", "picture to first token ms", "per token ms", "prefill 5 tok/s", "prefill 9 tok/s",
            "decode tok/s", "peak GB", "wall s"} == found.keys()  # fmt: skip
    assert all(value > 0 for value in found.values())


def test_memory_of_children_counts():
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'b = bytearray(80 << 20); input()'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while (size := bench_scale.tree_bytes(process.pid)) < 80 << 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.communicate(b"\n")

    assert size >= 80 << 20
    assert bench_scale.tree_bytes(process.pid) == 0
