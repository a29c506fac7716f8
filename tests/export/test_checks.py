"""The rules of a graph, each broken on purpose."""

import onnx
import pytest
from onnx import TensorProto, helper

from fico_export.devices import targets
from fico_export.errors import ExportError
from fico_export.exporter.checks import check_graph

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def graph(path, nodes, outputs, inputs=(("x", FLOAT, [2, 4096]),), constants=(), opset=18, ir_version=10):
    """A small graph on disk."""
    values = [[helper.make_tensor_value_info(*spec) for spec in specs] for specs in (inputs, outputs)]
    tensors = [helper.make_tensor(name, kind, dims, data) for name, kind, dims, data in constants]
    made = helper.make_graph(nodes, "g", *values, tensors)
    imports = [helper.make_opsetid("", opset)]
    if any(node.domain for node in nodes):
        imports.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(helper.make_model(made, opset_imports=imports, ir_version=ir_version), path)
    return path


def check(path, *, static=True):
    check_graph(path, targets.get("portable"), static=static)


def test_a_plain_graph_passes(tmp_path):
    node = helper.make_node("Add", ["x", "x"], ["y"], "add")
    check(graph(tmp_path / "g.onnx", [node], [("y", FLOAT, [2, 4096])]))


def test_an_operator_that_is_not_listed_is_named(tmp_path):
    node = helper.make_node("Selu", ["x"], ["y"], "my node")
    with pytest.raises(ExportError, match="'my node': Selu is not in the operators of portable"):
        check(graph(tmp_path / "g.onnx", [node], [("y", FLOAT, [2, 4096])]))


def test_an_operator_of_another_domain_is_named(tmp_path):
    node = helper.make_node("QuickGelu", ["x"], ["y"], "quick", domain="com.microsoft")
    with pytest.raises(ExportError, match=r"opsets|com\.microsoft"):
        check(graph(tmp_path / "g.onnx", [node], [("y", FLOAT, [2, 4096])]))


def test_a_data_dependent_operator_is_named(tmp_path):
    node = helper.make_node("NonZero", ["x"], ["y"], "find")
    with pytest.raises(ExportError, match="'find': NonZero has a data-dependent shape"):
        check(graph(tmp_path / "g.onnx", [node], [("y", INT64, [2, "n"])]))


@pytest.mark.parametrize(("k", "good"), [(3840, True), (3841, False)])
def test_top_k_stops_where_tensorrt_does(tmp_path, k, good):
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], "top")
    path = graph(
        tmp_path / "g.onnx",
        [node],
        [("v", FLOAT, [2, k]), ("i", INT64, [2, k])],
        constants=[("k", INT64, [1], [k])],
    )
    if good:
        check(path)
        return
    with pytest.raises(ExportError, match="at most 3840"):
        check(path)


def test_top_k_with_a_computed_k_is_refused(tmp_path):
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], "top")
    inputs = [("x", FLOAT, [2, 9]), ("k", INT64, [1])]
    with pytest.raises(ExportError, match="constant K"):
        check(graph(tmp_path / "g.onnx", [node], [("v", FLOAT, [2, "k"]), ("i", INT64, [2, "k"])], inputs))


@pytest.mark.parametrize("shape", [["n", 4], [2, None]])
def test_a_free_dimension_in_a_static_graph_is_named(tmp_path, shape):
    node = helper.make_node("Add", ["x", "x"], ["y"], "add")
    path = graph(tmp_path / "g.onnx", [node], [("y", FLOAT, shape)], [("x", FLOAT, shape)])
    check(path, static=False)
    with pytest.raises(ExportError, match="free dimension"):
        check(path)


def test_a_free_dimension_inside_a_static_graph_is_found(tmp_path):
    """Static inputs and outputs, and a Range of computed length between them."""
    constants = [("zero", INT64, [], [0]), ("one", INT64, [], [1])]
    nodes = [
        helper.make_node("Range", ["zero", "n", "one"], ["r"], "range"),
        helper.make_node("ReduceSum", ["r"], ["y"], "sum", keepdims=0),
    ]
    with pytest.raises(ExportError, match="'r'"):
        check(graph(tmp_path / "g.onnx", nodes, [("y", INT64, [])], [("n", INT64, [])], constants))


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 10), (18, 9)])
def test_another_opset_or_ir_version_is_refused(tmp_path, opset, ir_version):
    node = helper.make_node("Add", ["x", "x"], ["y"], "add")
    path = graph(tmp_path / "g.onnx", [node], [("y", FLOAT, [2, 4096])], opset=opset, ir_version=ir_version)
    with pytest.raises(ExportError, match="opset"):
        check(path)


def test_shapes_that_contradict_each_other_are_refused(tmp_path):
    node = helper.make_node("MatMul", ["x", "x"], ["y"], "product")
    with pytest.raises(ExportError, match="not valid ONNX"):
        check(graph(tmp_path / "g.onnx", [node], [("y", FLOAT, [2, 4096])]))
