"""`scripts/bench_matrix.py` measures each cell once, keeps what cannot be, and goes on where it was stopped."""

import csv
import json

import bench_matrix
import cells
import pytest

from fico_export.errors import ConfigError


@pytest.fixture
def matrix(tiny_checkpoint, make_bundle, tmp_path, capsys):
    """matrix(**options) → rows of the table: 16 and 1000 of 64 visual tokens."""
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    for method, keep, bundle in (
        ("none", None, make_bundle(tiny_checkpoint, verify=False)),
        ("ficoco-v", 16, make_bundle(tiny_checkpoint, 16)),
    ):
        cell = bench_matrix.Cell(str(tiny_checkpoint), "fp32", "portable", method, keep, "ort-cpu")
        (bundles / cell.bundle).symlink_to(bundle)

    def run(**options):
        given = {"models": str(tiny_checkpoint), "methods": "ficoco-v", "keeps": "16,1000", "precisions": "fp32",
                 "targets": "portable", "backends": "ort-cpu", "iterations": 2, "warm_up": 0, "new_tokens": 3,
                 "threads": 1, "in_turn": False, "keep_bundles": True, "out": tmp_path}  # fmt: skip
        bench_matrix.main(**given | options)
        table = (tmp_path / "matrix.csv").read_text()
        assert capsys.readouterr().out == table
        return list(csv.DictReader(table.splitlines()))

    return run


def test_a_cell_is_measured_beside_none_and_what_cannot_be_is_refused(matrix, tmp_path):
    measured, refused = matrix()

    assert (measured["outcome"], measured["keep"], measured["backend"]) == ("measured", "16", "ort-cpu")
    assert float(measured["ttft_ms"]) > 0
    assert float(measured["prefill_ratio"]) > 0
    assert float(measured["reducer_share"]) > 0
    assert (refused["outcome"], refused["ttft_ms"]) == ("refused", "")
    assert "1000" in refused["reason"]
    whole = json.loads((tmp_path / "matrix.json").read_text())
    assert [b["method"] for b in whole["cells"][0]["profile"]["bundles"]] == ["none", "ficoco-v"]
    assert whole["environment"]["machine"]["versions"]["onnxruntime-gpu"]


def test_engines_are_built_where_the_backend_runs_them(matrix):
    rows = matrix(backends="trt", keeps="16")

    assert [row["outcome"] for row in rows] == ["refused"]  # by `fico build`, before anything is measured
    assert "no engines for target portable" in rows[0]["reason"]


def test_it_goes_on_where_it_was_stopped(matrix, tmp_path, monkeypatch):
    first = matrix()
    asked = []
    monkeypatch.setattr(bench_matrix, "measure", lambda cell, *_: asked.append(cell) or {"failed": "stopped"})
    assert matrix() == first
    assert not asked

    (file,) = (tmp_path / "cells").glob("*ficoco-v-16-*.json")
    file.write_text(file.read_text()[:200])  # killed amid writing, were it not written aside
    assert [row["outcome"] for row in matrix()] == ["failed", "refused"]
    assert [cell.keep for cell in asked] == [16]
    monkeypatch.undo()
    assert [row["outcome"] for row in matrix()] == ["measured", "refused"]  # what failed is tried again


def test_cells_of_another_way_do_not_mix(matrix, tmp_path):
    matrix()
    with pytest.raises(ConfigError, match="other options"):
        matrix(iterations=3)
    content = json.loads((tmp_path / "environment.json").read_text())
    content["machine"]["cpu"] = "another"
    (tmp_path / "environment.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="another machine"):
        matrix()


def test_bundles_go_when_no_cell_needs_them(tmp_path):
    cell = bench_matrix.Cell("demo", "fp32", "portable", "tome", 64, "ort-cpu")
    for name in ("demo-none-all-fp32-portable", "demo-tome-64-fp32-portable", "demo-tome-32-fp32-portable"):
        (tmp_path / name).mkdir()
    bench_matrix.clear(tmp_path, [cell])
    assert {p.name for p in tmp_path.iterdir()} == {"demo-none-all-fp32-portable", cell.bundle}
    bench_matrix.clear(tmp_path, [])
    assert not list(tmp_path.iterdir())


def test_what_is_half_written_is_nothing(tmp_path):
    cells.keep(tmp_path / "a.json", {"x": 1})
    (tmp_path / "b.json").write_text('{"x": ')

    assert cells.kept(tmp_path / "a.json") == {"x": 1}
    assert cells.kept(tmp_path / "b.json") is None
    assert cells.kept(tmp_path / "c.json") is None
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.json", "b.json"]
