"""The `ort` target's decoder as a graph that others can open: names, operators, and caches that are not shared."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from fico_export.bundle.manifest import Manifest
from fico_export.devices import targets
from fico_export.errors import ExportError
from fico_export.exporter.checks import check_graph


@pytest.fixture(scope="module")
def paths(tiny_checkpoint_v5, make_bundle):
    """The decoder's file for target ort, and for portable."""
    folders = make_bundle(tiny_checkpoint_v5, 16, target="ort", verify=False), make_bundle(tiny_checkpoint_v5)
    return [f / Manifest.load(f).graphs["decoder_model_merged"].file for f in folders]


def test_each_layer_is_what_onnx_runtime_fuses(paths):
    graph = onnx.load(paths[0], load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node if node.domain == "com.microsoft")

    assert counts == {
        "GroupQueryAttention": 2,
        "RotaryEmbedding": 4,
        "SkipSimplifiedLayerNormalization": 4,
    }
    assert {n.name.split("/")[0] for n in graph.node if n.op_type == "GroupQueryAttention"} == {
        f"language_model.layers.{i}.self_attn" for i in range(2)
    }
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    assert shapes["past_key_values.0.key"] == ["batch_size", 2, "max_sequence_length", 16]
    assert shapes["past_key_values.0.key"] == shapes["present.0.key"]
    assert shapes["logits"] == ["batch_size", 1, 512]


def test_inputs_and_outputs_are_those_of_the_portable_form(paths):
    fused, portable = (ort.InferenceSession(str(p)) for p in paths)

    assert [i.name for i in fused.get_inputs()] == [i.name for i in portable.get_inputs()]
    assert [o.name for o in fused.get_outputs()] == [o.name for o in portable.get_outputs()]


def test_without_sharing_it_computes_the_same(paths):
    """A runtime that gives a cache of P rows and takes one of P + S, as for any graph of the convention."""
    fused, portable = (ort.InferenceSession(str(p)) for p in paths)
    embeds = np.random.RandomState(0).randn(1, 9, 64).astype(np.float32)
    names = [i.name for i in portable.get_inputs() if i.name.startswith("past")]
    caches = [[np.zeros((1, 2, 0, 16), np.float32)] * len(names) for _ in range(2)]
    for start, end in ((0, 5), (5, 6), (6, 9)):
        feeds = {
            "inputs_embeds": embeds[:, start:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end)[None] * 3,
        }
        (got, *caches[0]), (want, *caches[1]) = (
            session.run(None, feeds | dict(zip(names, cache, strict=True)))
            for session, cache in zip((fused, portable), caches, strict=True)
        )
        np.testing.assert_allclose(got, want[:, -1:], atol=1e-4)
        np.testing.assert_allclose(caches[0][-1], caches[1][-1], atol=1e-4)


def contrib(path, kind, version=1, **attributes):
    """A graph of one operator of ONNX Runtime's domain."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4]) for n in ("x", "y")]
    node = helper.make_node(kind, ["x"], ["y"], "own", domain=targets.CONTRIB, **attributes)
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(targets.CONTRIB, version)]
    made = helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(helper.make_model(made, opset_imports=imports, ir_version=10), path)
    return path


def test_an_operator_of_onnx_runtime_that_is_not_listed_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"'own': com\.microsoft::QuickGelu is not in the operators of ort"):
        check_graph(contrib(tmp_path / "g.onnx", "QuickGelu"), targets.get("ort"), static=False)


def test_another_version_of_its_domain_is_refused(tmp_path):
    with pytest.raises(ExportError, match="opsets"):
        check_graph(contrib(tmp_path / "g.onnx", "QuickGelu", 2), targets.get("ort"), static=False)


def test_one_that_onnx_runtime_does_not_take_is_refused(tmp_path):
    """onnx knows nothing of these operators: without attributes and inputs, this one passes it."""
    with pytest.raises(ExportError, match="does not load"):
        check_graph(contrib(tmp_path / "g.onnx", "RotaryEmbedding"), targets.get("ort"), static=False)


def test_the_portable_target_has_none(paths):
    assert not targets.get("portable").contrib
    with pytest.raises(ExportError, match="opsets"):
        check_graph(paths[0], targets.get("portable"), static=False)
