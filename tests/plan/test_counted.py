"""What `fico plan` states of FLOPs and bytes is what is counted in the exported graphs."""

import json
import math
from dataclasses import replace

import hollow
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fico_export import models
from fico_export.api import open_architecture
from fico_export.bundle.manifest import Manifest
from fico_export.exporter import cost, trace
from fico_export.plan import advice, planner
from fico_export.plan.costs import Storage, vision_flops, vision_weights
from fico_export.plan.planner import PlanRequest

TEXT = 20
TYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64}
LLAVA_7B = {
    "model_type": "llava",
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 4096, "vocab_size": 32064,
    },
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def llava_7b(tmp_path_factory):
    """Its config.json, and nothing else."""
    folder = tmp_path_factory.mktemp("llava-1.5-7b")
    (folder / "config.json").write_text(json.dumps(LLAVA_7B))
    return models.describe(folder)


def at_inputs(path, feeds):
    """The graph of a file, with the shapes that ONNX Runtime found on these inputs at its matrix products."""
    model = onnx.load(path, load_external_data=False)
    ours = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    products = [
        node for node in model.graph.node if node.op_type in ("MatMul", "MatMulNBits", "Gemm", "Conv")
    ]
    wanted = dict.fromkeys(
        name for node in products for name in (*node.input[:2], *node.output) if name not in ours
    )
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    copy = path.with_name(f"counted-{path.name}")  # beside its external data
    onnx.save(model, copy)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy, options, providers=["CPUExecutionProvider"])
    copy.unlink()
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    graph = ir.from_proto(onnx.load(path, load_external_data=False)).graph
    for value in (v for node in graph for v in (*node.inputs, *node.outputs) if v is not None):
        known = {**found, **feeds}.get(value.name or "")
        if known is not None:
            value.shape = ir.Shape(known.shape)
    return graph


def weight_bytes(graph):
    """Of the initializers: bytes of those made of a checkpoint's tensors, and of the other constants."""
    sizes = {True: 0, False: 0}
    for name, value in graph.initializers.items():
        made = ".weight" in name or ".bias" in name or "_embedding" in name or name.startswith("zero_points.")
        sizes[made] += math.ceil(math.prod(value.shape.numpy()) * value.dtype.itemsize)
    return sizes[True], sizes[False]


def counted(bundle, name, **sizes):
    """FLOPs of a graph at sizes of its free axes, and bytes of its weights."""
    graph = Manifest.load(bundle).graph(name)
    feeds = {}
    for tensor in graph.inputs:
        shape = [sizes.get(axis, 1) if isinstance(axis, str) else axis for axis in tensor.shape]
        fill = np.arange(shape[-1]) if tensor.name == "position_ids" else 1
        feeds[tensor.name] = np.broadcast_to(fill, shape).astype(TYPES[tensor.dtype])
    found = at_inputs(bundle / graph.file, feeds)
    return cost.cost(found).flops, weight_bytes(found)[0]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ficoco-v", {}),
        ("g-prune", {"precision": "int4", "block": 32, "quantize_vision": "int8", "quantize_head": "int8"}),
    ],
)
def test_a_bundle_of_576_tokens_costs_what_was_planned(shallow24_checkpoint, make_bundle, method, options):
    bundle = make_bundle(shallow24_checkpoint, 64, method=method, verify=False, **options)
    planned = advice.plan(
        open_architecture(str(shallow24_checkpoint)),
        PlanRequest(method=method, keep=64, text_tokens=TEXT, new_tokens=9, **options),
    )
    vision, prefill, decode = planned.stages
    prompt, past = 64 + TEXT, planned.rows - 1

    whole = counted(
        bundle,
        "decoder_model_merged",
        sequence_length=prompt,
        total_sequence_length=prompt,
        past_sequence_length=0,
    )
    step = counted(
        bundle,
        "decoder_model_merged",
        sequence_length=1,
        total_sequence_length=past + 1,
        past_sequence_length=past,
    )
    assert (vision.total_flops, vision.weight_bytes) == pytest.approx(
        counted(bundle, "vision_encoder"), rel=1e-2
    )
    assert (prefill.total_flops, prefill.weight_bytes) == pytest.approx(whole, rel=1e-2)
    assert (decode.total_flops, decode.weight_bytes) == pytest.approx(step, rel=1e-2)
    assert past + 1 == 64 + TEXT + 9


def test_a_decoder_that_reduces_costs_what_was_planned(tiny_checkpoint, make_bundle):
    bundle = make_bundle(
        tiny_checkpoint, 16, method="fastv", settings={"layer": 1}, precision="fp16", verify=False
    )
    planned = advice.plan(
        open_architecture(str(tiny_checkpoint)),
        PlanRequest(
            method="fastv", keep=16, settings={"layer": 1}, precision="fp16", text_tokens=TEXT, new_tokens=9
        ),
    )
    vision, prefill, _ = planned.stages

    assert (vision.total_flops, vision.weight_bytes) == pytest.approx(
        counted(bundle, "vision_encoder"), rel=1e-2
    )
    found = counted(bundle, "decoder_prefill", sequence_length=64 + TEXT)
    assert (prefill.total_flops, prefill.weight_bytes) == pytest.approx(found, rel=1e-2)
    assert Manifest.load(bundle).reduction.cached == [64, 16]
    (cache,) = [part.bytes.likely for part in planned.memory if part.name == "KV cache"]
    assert cache == 2 * (64 + 16 + 2 * (TEXT + 9)) * (
        2 * 2 * 16 * 2
    )  # twice, as it grows; 2 heads of 16, FP16


def test_a_static_cache_is_counted_whole_where_the_decoder_reduces(tiny_checkpoint, make_bundle):
    asked = {"settings": {"layer": 1}, "precision": "fp16", "target": "trt-10.3", "max_context": 512}
    bundle = make_bundle(tiny_checkpoint, 16, method="fastv", verify=False, **asked)
    planned = advice.plan(
        open_architecture(str(tiny_checkpoint)),
        PlanRequest(method="fastv", keep=16, text_tokens=TEXT, new_tokens=9, **asked),
    )
    _, prefill, decode = planned.stages

    found = counted(bundle, "decoder_prefill", sequence_length=64 + TEXT)
    assert (prefill.total_flops, prefill.weight_bytes) == pytest.approx(found, rel=1e-2)
    assert (decode.total_flops, decode.weight_bytes) == pytest.approx(
        counted(bundle, "decoder_with_past"), rel=1e-2
    )
    (cache,) = [part.bytes.likely for part in planned.memory if part.name == "KV cache"]
    inputs = Manifest.load(bundle).graph("decoder_with_past").inputs
    assert cache == sum(
        2 * math.prod(t.shape) for t in inputs if t.name.startswith("past_key_values")
    )  # FP16


def test_the_ort_targets_packed_weights_are_counted(tiny_checkpoint, make_bundle):
    options = {"precision": "int4", "block": 128, "target": "ort", "quantize_head": "int8"}
    bundle = make_bundle(tiny_checkpoint, 16, method="uniform", verify=False, **options)
    planned = advice.plan(
        open_architecture(str(tiny_checkpoint)), PlanRequest(method="uniform", keep=16, **options)
    )

    graph = Manifest.load(bundle).graph("decoder_model_merged")
    model = ir.load(bundle / graph.file)
    assert planned.stages[1].weight_bytes == pytest.approx(weight_bytes(model.graph)[0], rel=1e-2)


def test_llava_7b_costs_what_was_published(llava_7b):
    planned = advice.plan(llava_7b, PlanRequest(method="none", precision="fp16", text_tokens=40))
    vision, prefill, _ = planned.stages

    assert vision.flops["embedding"] + vision.flops["tower"] == pytest.approx(366e9, rel=1e-2)
    assert vision.flops["projector"] == pytest.approx(24.2e9, rel=1e-2)
    assert vision.weight_bytes == pytest.approx(0.58e9 + 2 * (1024 * 4096 + 4096**2), rel=1e-2)
    # The published count has half of the attention's square, which a causal kernel skips and the graph does not.
    causal = prefill.flops["layers"] - 32 * 2 * 616**2 * 4096
    assert causal == pytest.approx(8.1e12, rel=1e-2)
    assert prefill.weight_bytes == pytest.approx(2 * (6.476e9 + 131e6), rel=1e-2)


@pytest.mark.parametrize(("keep", "tflop"), [(192, 3.0), (64, 1.35)])
def test_fewer_tokens_cost_what_was_published(llava_7b, keep, tflop):
    flops = planner.count(llava_7b, PlanRequest(method="uniform", keep=keep)).prefill["layers"]

    assert flops - 32 * 2 * (keep + 40) ** 2 * 4096 == pytest.approx(tflop * 1e12, rel=2e-2)


def test_llava_7b_has_half_a_mebibyte_of_cache_per_token(llava_7b):
    fixed = advice.plan(
        llava_7b, PlanRequest(method="none", target="trt-10.3", precision="fp16", max_context=1024)
    )

    (cache,) = [part.bytes.likely for part in fixed.memory if part.name == "KV cache"]
    assert cache == 1024 * 2**19


def test_each_sequence_of_a_batch_has_a_cache(llava_7b):
    asked = PlanRequest(method="none", target="trt-10.3", precision="fp16", max_context=1024)
    one, four = (advice.plan(llava_7b, replace(asked, max_batch=batch)) for batch in (1, 4))
    caches = [next(p.bytes.likely for p in made.memory if p.name == "KV cache") for made in (one, four)]

    assert caches[1] == 4 * caches[0]
    assert four.needed.likely - one.needed.likely == 3 * caches[0]


def test_llava_7b_in_int4_has_the_published_size(llava_7b):
    planned = advice.plan(llava_7b, PlanRequest(method="uniform", keep=64, precision="int4"))
    weights = {part.name: part.bytes.likely for part in planned.memory if part.name.startswith("weights")}

    assert weights["weights: decoder"] == pytest.approx(3.34e9, rel=1e-2)
    assert weights["weights: lm_head"] == pytest.approx(0.26e9, rel=2e-2)


def test_the_vision_graph_of_llava_7b_is_counted_with_its_constants(tmp_path, llava_7b):
    model = hollow.llava_7b(tmp_path)
    plan = model.plan("g-prune", 64, {})
    graph = trace.trace(lambda: model.vision(plan, Storage("fp16").floats), 18)
    trace.simplify(graph)

    made, constants = weight_bytes(graph.graph)
    described = llava_7b.plan("g-prune", 64, {})
    assert vision_weights(llava_7b, described, Storage("fp16")) == pytest.approx(made + constants, rel=1e-2)
    assert sum(vision_flops(llava_7b, described).values()) == pytest.approx(
        cost.cost(graph.graph).flops, rel=1e-2
    )
