"""`scripts/bench_batch.py` measures a bundle, and exports two where a cache is static; what ran together says the same."""

import json
import sys

import bench_batch
import pytest


@pytest.fixture
def bench(monkeypatch, capsys):
    def run(*arguments):
        line = [
            "bench_batch.py",
            "--prompt",
            "5",
            "--new-tokens",
            "4",
            "--repeats",
            "1",
            *map(str, arguments),
        ]
        monkeypatch.setattr(sys, "argv", line)
        code = bench_batch.main()
        return code, capsys.readouterr()

    return run


def test_a_bundle_is_measured(bench, tiny_checkpoint_v5, make_bundle):
    bundle = make_bundle(tiny_checkpoint_v5, 16, target="ort", max_batch=4, verify=False)
    code, said = bench("--bundle", bundle, "--json")
    (row,) = json.loads(said.out)

    assert code == 0
    assert (row["batch"], row["tokens"], row["same tokens"]) == (4, 16, 16)
    assert row["ratio"] == pytest.approx(row["together tok/s"] / row["one by one tok/s"])


def test_a_static_form_is_held_against_one_of_one_sequence(bench, tiny_checkpoint_v5):
    code, said = bench(
        "--model", tiny_checkpoint_v5, "--targets", "rtx", "--precisions", "fp32", "--batch", "2"
    )

    assert code == 0
    assert "rtx fp32" in said.out
    assert "8 of 8" in said.out
    assert [line.strip() for line in said.err.splitlines()][:2] == [
        "export rtx fp32, 2 together",
        "export rtx fp32, 1 together",
    ]
