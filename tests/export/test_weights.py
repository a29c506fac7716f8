"""Weights reach the graph unread until they are written, in the layout that MatMul takes."""

import onnx_ir as ir
import onnxruntime as ort
import pytest
from tracing import decoder_graph

from fico_export import models
from fico_export.errors import ConfigError
from fico_export.exporter import trace, weights
from fico_export.models.weights import Weights


def test_no_large_weight_is_read_before_the_graph_is_written(grid24_checkpoint, monkeypatch, tmp_path):
    model = models.load(grid24_checkpoint)
    graph = decoder_graph(model)
    read = []
    load = Weights.load
    monkeypatch.setattr(Weights, "load", lambda self, name: read.append(name) or load(self, name))
    weights.bind(graph, model.checkpoint, lambda text: None)
    trace.simplify(graph)

    assert not [name for name in read if "norm" not in name]
    weights.save(graph, tmp_path / "decoder.onnx", lambda count: None)
    assert {name for name in model.shapes if "layers" in name and "language_model" in name} <= set(read)


def test_matrices_are_stored_as_matmul_takes_them(grid24_checkpoint, tmp_path):
    model = models.load(grid24_checkpoint)
    graph = decoder_graph(model)
    weights.bind(graph, model.checkpoint, lambda text: None)
    trace.simplify(graph)
    weights.save(graph, tmp_path / "decoder.onnx", lambda count: None)
    stored = ir.load(tmp_path / "decoder.onnx").graph.initializers
    name = "language_model.layers.0.mlp.gate_proj.weight"

    assert (stored[f"{name}.T"].const_value.numpy() == model.checkpoint.load(name).numpy().T).all()
    assert name not in stored
    assert ort.InferenceSession(str(tmp_path / "decoder.onnx"))


def test_a_value_that_fp16_cannot_hold_is_refused(grid24_checkpoint, monkeypatch, tmp_path):
    model = models.load(grid24_checkpoint)
    graph = decoder_graph(model, "fp16")
    load = Weights.load
    monkeypatch.setattr(Weights, "load", lambda self, name: load(self, name) * 1e7)
    weights.bind(graph, model.checkpoint, lambda text: None)
    with pytest.raises(ConfigError, match="beyond the range of FLOAT16"), weights.own_errors():
        weights.save(graph, tmp_path / "decoder.onnx", lambda count: None)
