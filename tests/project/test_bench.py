"""`scripts/bench_reducers.py` measures a method, counts a graph as it is, and goes on where it was stopped."""

import json
import sys

import bench_reducers
import numpy as np
import onnx_ir as ir
import pytest

from fico_export.exporter.cost import Cost, cost, count


@pytest.fixture
def bench(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        line = ["bench_reducers.py", "--model", str(tiny_checkpoint), "--out", str(tmp_path / "out.json")]
        monkeypatch.setattr(sys, "argv", [*line, "--repeats", "1", *arguments])
        capsys.readouterr()
        bench_reducers.main()
        return capsys.readouterr()

    return run


def test_a_method_is_measured_once_and_then_read_back(bench):
    wanted = ("--methods", "ficoco-v,fastv", "--keeps", "16")
    first = bench(*wanted, "--json")
    (row,) = json.loads(first.out)["results"]

    assert (row["method"], row["keep"], row["greedy"]) == ("ficoco-v", 16, False)
    assert row["median_ms"].keys() == {"none", "method", "own"}
    assert row["own_share"] > 0
    assert row["flops_ratio"] < 1  # it shortens the tower
    assert row["nodes_added"] >= row["own_nodes"] > 0
    again = bench(*wanted)
    assert "ficoco-v" in again.out
    assert "ficoco-v at 16" not in again.err


def test_flops_are_those_of_products_and_a_scan_counts_its_turns():
    """[2, 3]·[3, 5] outside, [1, 3]·[3, 5] in each of seven turns."""
    x, w = ir.val("x", ir.DataType.FLOAT, [2, 3]), ir.val("w", ir.DataType.FLOAT, [3, 5])
    rows = ir.val("rows", ir.DataType.FLOAT, [7, 1, 3])
    row = ir.val("row", ir.DataType.FLOAT, [1, 3])
    inside = ir.node("MatMul", [row, w], outputs=[ir.val("o", ir.DataType.FLOAT, [1, 5])])
    body = ir.Graph([row], inside.outputs, nodes=[inside], name="body")
    scan = ir.node(
        "Scan",
        [rows],
        attributes={"body": body, "num_scan_inputs": 1},
        outputs=[ir.val("s", ir.DataType.FLOAT, [7, 1, 5])],
    )
    outside = ir.node("MatMul", [x, w], outputs=[ir.val("y", ir.DataType.FLOAT, [2, 5])])
    other = ir.node("Relu", outside.outputs, outputs=[ir.val("z", ir.DataType.FLOAT, [2, 5])])

    assert cost([outside, other]) == Cost(2, 2 * 2 * 3 * 5)
    assert cost([scan]) == Cost(2, 7 * 2 * 3 * 5)
    assert count([outside, other, scan]) == 4


def test_inputs_of_a_graph_get_content_that_it_can_take():
    positions = bench_reducers.example(ir.val("p", ir.DataType.INT64, [1, 4]), 576)
    sizes = bench_reducers.example(ir.val("s", ir.DataType.FLOAT, [1, 4]), 576)

    assert positions.tolist() == [[0, 144, 288, 432]]
    np.testing.assert_array_equal(sizes, np.ones((1, 4), np.float32))
