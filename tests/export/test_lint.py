"""What each target refuses, planted; and that it takes the graphs that are exported for it."""

import json

import onnx_ir as ir
import pytest
from cli_tools import in_this_process
from onnx import TensorProto, helper
from planted import FLOAT, HALF, INT64, attention, constant, model, quantised, scattered, scatters, selection

from fico_export.bundle.manifest import Manifest
from fico_export.devices import targets
from fico_export.errors import ExportError
from fico_export.exporter.checks import check_graph
from fico_export.exporter.lint import lint, read

PARSED = [name for name in targets.names() if targets.get(name).parser]


@pytest.fixture
def fico(capsys):
    """fico(*arguments) → Outcome."""
    return lambda *arguments: in_this_process(capsys, "fico", *arguments)


def found(graph, target):
    return lint(graph, targets.get(target))


@pytest.mark.parametrize(
    ("operator", "first", "without"),
    [
        ("Attention", "TensorRT 10.14, TensorRT-RTX 1.7", {"trt-10.3", "trt-10.13"}),
        ("RotaryEmbedding", "TensorRT 10.15, TensorRT-RTX 1.7", {"trt-10.3", "trt-10.13"}),
        ("RMSNormalization", "TensorRT 10.15, TensorRT-RTX 1.7", {"trt-10.3", "trt-10.13"}),
        ("TensorScatter", "TensorRT 10.15, TensorRT-RTX 1.7", {"trt-10.3", "trt-10.13"}),
        ("Swish", "TensorRT 11.0, TensorRT-RTX 1.7", {"trt-10.3", "trt-10.13", "trt-10.16"}),
    ],
)
def test_a_later_operator_is_named_with_its_first_version_and_the_targets_that_have_it(
    operator, first, without
):
    for name in PARSED:
        assert (operator in targets.get(name).operators) == (name not in without)
    graph = model([helper.make_node(operator, ["x"], ["y"], "late")], [("x", HALF, [2])], [("y", HALF, [2])])
    (violation,) = found(graph, "trt-10.3")

    assert str(violation) == f"node 'late': {operator} is not in the operators of trt-10.3 (first in {first})"
    assert violation.since == first
    assert all(name in violation.fix for name in set(PARSED) - without)


def test_attention_in_fp16_is_taken_from_10_14_on():
    assert [name for name in targets.names() if not found(attention(), name)] == [
        "rtx",
        "trt-10.16",
        "trt-11",
    ]


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (attention(FLOAT), "does not build in FP32"),
        (attention(inputs=("q", "k", "v", "", "pk"), outputs=("y",)), "takes no past_key"),
        (attention(inputs=("q", "k", "v", "", "pk", "pv")), "takes no past_value"),
        (attention(outputs=("y", "present_key", "present_value")), "has only its first output"),
        (attention(softcap=30.0), "takes no softcap on trt-10.16 (softcap = 30.0)"),
        (attention(softmax_precision=1), "takes no softmax_precision"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_attention_may_not_do_is_named(graph, words):
    for name in ("trt-10.16", "trt-11", "rtx"):
        assert any(words.replace("trt-10.16", name) in str(v) for v in found(graph, name))


@pytest.mark.parametrize("target", targets.names())
@pytest.mark.parametrize("operator", ["NonZero", "Unique", "Compress", "NonMaxSuppression"])
def test_a_data_dependent_operator_is_refused_everywhere(operator, target):
    graph = model(
        [helper.make_node(operator, ["x"], ["y"], "find")], [("x", FLOAT, [4])], [("y", INT64, None)]
    )
    (violation,) = found(graph, target)

    assert str(violation) == f"node 'find': {operator} has a data-dependent shape"
    assert "TopK of constant K" in violation.fix


@pytest.mark.parametrize("target", PARSED)
@pytest.mark.parametrize("operator", ["ScatterND", "ScatterElements"])
@pytest.mark.parametrize("reduction", ["none", "add", None])
def test_a_scatter_with_a_reduction_is_refused(operator, reduction, target):
    violations = found(scatters(operator, reduction), target)

    assert bool(violations) == (reduction == "add")
    for violation in violations:
        assert "reduction = 'add'" in violation.problem
        assert "one-hot" in violation.fix


@pytest.mark.parametrize("target", PARSED)
@pytest.mark.parametrize("k", [3840, 3841])
def test_top_k_is_held_to_its_limit(k, target):
    assert bool(found(selection(k), target)) == (k > 3840)


def test_top_k_gives_its_values_sorted():
    refused = [name for name in targets.names() if found(selection(10, is_sorted=0), name)]

    assert refused == ["trt-10.13", "trt-10.16", "trt-10.3", "trt-11"]


@pytest.mark.parametrize("target", PARSED)
def test_int4_weights_are_taken_with_a_zero_point_of_zero(target):
    assert found(quantised(zero=0), target) == []
    (asymmetric,) = found(quantised(zero=3), target)
    assert "zero-point of zero" in asymmetric.problem


@pytest.mark.parametrize("target", [name for name in PARSED if name != "rtx"])
def test_int4_weights_have_a_written_zero_point_positive_scales_and_an_even_width(target):
    (absent,) = found(quantised(), target)
    assert "zero-point written out" in absent.problem
    (negative,) = found(quantised(zero=0, scale=(0.5, -0.5)), target)
    assert "positive scales" in negative.problem
    (odd,) = found(quantised(zero=0, columns=3, scale=(0.5, 0.5, 0.5)), target)
    assert "even last dimension" in odd.problem


@pytest.mark.parametrize("target", PARSED)
def test_uint4_is_refused_wherever_it_appears(target):
    violations = found(quantised(zero=0, kind=TensorProto.UINT4), target)

    assert {(v.kind, v.name, v.what) for v in violations} == {
        ("tensor", "w", "UINT4"),
        ("tensor", "z", "UINT4"),
    }
    assert all("symmetric INT4" in v.fix for v in violations)


def test_a_type_that_came_later_is_named_with_its_first_version():
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = model([node], [("x", TensorProto.FLOAT4E2M1, [2])], [("y", TensorProto.FLOAT4E2M1, [2])])

    assert {v.since for v in found(graph, "trt-10.3")} == {"TensorRT 10.8, TensorRT-RTX 1.7"}
    assert found(graph, "trt-10.13") == []


@pytest.mark.parametrize("target", targets.names())
def test_another_domain_is_refused(target):
    node = helper.make_node("MatMulNBits", ["x"], ["y"], "fused", domain="com.microsoft")
    (violation,) = found(model([node], [("x", FLOAT, [2])], [("y", FLOAT, [2])]), target)

    assert violation.what == "com.microsoft::MatMulNBits"
    allowed = lint(
        model([node], [("x", FLOAT, [2])], [("y", FLOAT, [2])]),
        targets.get(target),
        also={"com.microsoft::MatMulNBits"},
    )
    assert allowed == []


@pytest.mark.parametrize("target", PARSED)
def test_a_shape_that_follows_from_a_score_is_refused(target):
    """From shapes and integer inputs it may follow."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["count"], keepdims=0),
        helper.make_node("Cast", ["count"], ["length"], to=INT64),
        helper.make_node("Range", ["zero", "length", "one"], ["computed"], "computed"),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ReduceSum", ["shape"], ["size"], keepdims=0),
        helper.make_node("Range", ["zero", "size", "one"], ["fixed"], "fixed"),
        helper.make_node("Range", ["zero", "n", "one"], ["asked"], "asked"),
    ]
    outputs = [(name, INT64, None) for name in ("computed", "fixed", "asked")]
    constants = [constant("zero", 0), constant("one", 1)]
    graph = model(nodes, [("x", FLOAT, [7]), ("n", INT64, [])], outputs, constants)
    (violation,) = found(graph, target)

    assert str(violation) == "node 'computed': Range has a data-dependent shape, by its input 'length'"


def test_a_rule_holds_until_the_version_that_lifted_it():
    node = helper.make_node("Einsum", ["x", "x"], ["y"], "sum", equation="...i,...i->...")
    graph = model([node], [("x", FLOAT, [2, 3])], [("y", FLOAT, [2])])

    (violation,) = found(graph, "trt-10.3")
    assert violation.since == "TensorRT 10.12, TensorRT-RTX 1.7"
    assert all(found(graph, name) == [] for name in PARSED if name != "trt-10.3")


@pytest.mark.parametrize("target", ["trt-10.16", "trt-11", "rtx"])
def test_a_cache_is_written_in_place_linearly_and_as_floats(target):
    assert found(scattered(), target) == []
    assert "write a graph output" in str(found(scattered(in_place=False), target)[0])
    assert "linearly" in str(found(scattered(mode="circular"), target)[0])
    assert "axis -2" in str(found(scattered(axis=-1), target)[0])
    assert "no quantised cache" in str(found(scattered(TensorProto.INT8), target)[0])


def test_a_violation_inside_a_scan_is_found():
    body = helper.make_graph(
        [helper.make_node("NonZero", ["a"], ["b"], "within")],
        "body",
        [helper.make_tensor_value_info("a", FLOAT, [3])],
        [helper.make_tensor_value_info("b", INT64, None)],
    )
    node = helper.make_node("Scan", ["x"], ["y"], "scan", body=body, num_scan_inputs=1)
    (violation,) = found(model([node], [("x", FLOAT, [2, 3])], [("y", INT64, None)]), "rtx")

    assert violation.name == "within"


def test_what_is_exported_passes_for_every_target(make_bundle, tiny_checkpoint):
    """Vision, embedding and both decoder forms; the vision graph of every method in test_vision_graph.py."""
    fastv = {"method": "fastv", "settings": {"layer": 1}, "precision": "fp16", "verify": False}
    for folder in (make_bundle(tiny_checkpoint, 16), make_bundle(tiny_checkpoint, 16, **fastv)):
        for graph in Manifest.load(folder).graphs.values():
            read_once = read(folder / graph.file)
            for name in targets.names():
                assert lint(read_once, targets.get(name)) == []


@pytest.mark.parametrize("target", ["portable", "ort"])
def test_the_command_takes_an_int4_bundle_for_its_own_target(target, fico, make_bundle, tiny_checkpoint):
    folder = make_bundle(tiny_checkpoint, 16, precision="int4", block=32, target=target, verify=False)

    assert fico("lint", folder).code == 0


def test_an_export_fails_with_the_same_words(tmp_path):
    node = helper.make_node("Swish", ["x"], ["y"], "late")
    graph = model([node], [("x", FLOAT, [2])], [("y", FLOAT, [2])], opset=18)
    ir.save(graph, tmp_path / "g.onnx")
    with pytest.raises(ExportError, match=r"first in TensorRT 11\.0") as raised:
        check_graph(tmp_path / "g.onnx", targets.get("trt-10.3"), static=True)

    assert "Sigmoid" in raised.value.fix
    assert "file an issue" in raised.value.fix


def test_the_command_lints_files_and_bundles(fico, tmp_path, make_bundle, tiny_checkpoint):
    ir.save(attention(), tmp_path / "g.onnx")
    refused = fico("lint", tmp_path / "g.onnx", "--target", "trt-10.3", "--json")
    assert refused.code == 1
    assert not refused.json["passed"]
    ((violation,),) = refused.json["graphs"].values()
    assert (violation["name"], violation["what"]) == ("attend", "Attention")
    plain = fico("lint", tmp_path / "g.onnx", "--target", "trt-10.3")
    assert "Attention is not in the operators of trt-10.3" in plain.out
    assert "hint: write MatMul, Softmax, MatMul" in plain.out
    assert fico("lint", tmp_path / "g.onnx", "--target", "rtx").code == 0

    folder = make_bundle(tiny_checkpoint, 16)
    passed = fico("lint", folder, "--json")
    assert passed.code == 0
    assert passed.json["target"] == "portable"
    assert len(passed.json["graphs"]) == len(json.loads((folder / "manifest.json").read_text())["graphs"])


def test_the_command_refuses_what_it_cannot_read(fico, tmp_path):
    (tmp_path / "g.onnx").write_text("no graph")
    fico("lint", tmp_path / "g.onnx").refuses("cannot be read as an ONNX graph", "g.onnx")
    fico("lint", tmp_path / "absent.onnx").refuses("absent.onnx")
    fico("lint", tmp_path).refuses("is no bundle")
    fico("lint", tmp_path / "g.onnx", "--target", "trt-10").refuses("did you mean 'trt-10.", "known: ")
