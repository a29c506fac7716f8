"""A decoder whose layers were copied is the decoder that was traced layer by layer."""

import collections

import numpy as np
import onnxruntime as ort
import pytest
from checkpoints import write_tiny
from tracing import decoder_graph

from fico_export import models
from fico_export.errors import ExportError
from fico_export.exporter import graphs, repeat, trace, weights

LAYERS = 5
AXES = {"batch_size": 2, "sequence_length": 3, "total_sequence_length": 8, "past_sequence_length": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    text = {"num_hidden_layers": LAYERS, "attention_bias": True}
    return models.load(write_tiny(tmp_path_factory.mktemp("deep") / "deep", text=text, seed=5))


def test_copied_layers_compute_what_traced_layers_do(model, monkeypatch, tmp_path):
    copied = decoder_graph(model)
    monkeypatch.setattr(graphs, "TRACED", LAYERS)
    traced = decoder_graph(model)

    names = [[v.name for v in (*g.graph.inputs, *g.graph.outputs)] for g in (copied, traced)]
    assert names[0] == names[1]
    counted = [collections.Counter(node.op_type for node in g.graph) for g in (copied, traced)]
    assert counted[0] == counted[1]
    nodes = [node.name for node in copied.graph]
    assert len(set(nodes)) == len(nodes)
    for g, name in ((copied, "copied.onnx"), (traced, "traced.onnx")):
        weights.bind(g, model.checkpoint, lambda text: None)
        trace.simplify(g)
        weights.save(g, tmp_path / name, lambda count: None)
    feeds = _feeds(ort.InferenceSession(tmp_path / "traced.onnx"))
    a, b = (ort.InferenceSession(tmp_path / n).run(None, feeds) for n in ("copied.onnx", "traced.onnx"))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_copy_leaves_out_the_outputs_that_its_original_leaves_out(model):
    left_out = collections.defaultdict(list)
    for node in decoder_graph(model, target="ort").graph:
        if node.op_type == "SkipSimplifiedLayerNormalization" and ".layers." in node.name:
            left_out[node.name.split(".")[2]].append([not output.name for output in node.outputs])

    assert left_out["2"] == [[False, True, True, False]] * 2
    assert left_out["3"] == left_out["4"] == left_out["2"]


def test_layers_that_are_not_alike_are_not_copied(model, monkeypatch):
    monkeypatch.setattr(graphs, "repeat_layers", lambda *given: None)
    graph = decoder_graph(model)
    node = next(
        n for n in graph.graph if n.name.startswith("language_model.layers.2.") and n.op_type == "Sigmoid"
    )
    node.op_type = "Tanh"

    with pytest.raises(ExportError, match="two layers"):
        repeat.repeat_layers(graph, "language_model.layers", LAYERS)


def _feeds(session):
    generator = np.random.RandomState(0)
    feeds = {}
    for i in session.get_inputs():
        shape = [AXES.get(d, d) for d in i.shape]
        whole = i.type == "tensor(int64)"
        feeds[i.name] = np.ones(shape, np.int64) if whole else generator.randn(*shape).astype(np.float32)
    return feeds
