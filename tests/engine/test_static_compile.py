"""Both dialects of the static cache pass the lint of every target they are for, and compile in TensorRT-RTX."""

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest
from checkpoints import write_tiny
from exhaustive import exhaustive

from fico_export import models
from fico_export.build.compile import Task, _config, compile_engine
from fico_export.devices import targets
from fico_export.errors import BuildError
from fico_export.exporter import quantize, trace, weights
from fico_export.exporter.checks import check_graph
from fico_export.exporter.graphs import graph_jobs
from fico_export.exporter.lint import lint, read

rtx = pytest.importorskip("rtx", exc_type=ImportError, reason="needs TensorRT-RTX: pip install '.[rtx]'")
trt = pytest.importorskip("tensorrt_rtx")

LAYERS, ROWS = 2, 512  # as many as a bundle has where nothing is asked for: other tests trace the same graphs
FOR = {"legacy": "trt-10.3", "modern": "rtx"}
HEADS = {"grouped heads": 2, "a head of keys for each of queries": 4}
MERGED, AFTER = ("uniform", "decoder_model_merged"), ("fastv", "decoder_with_past")
GROUPED, EACH = HEADS
# In FP32 the legacy dialect has the operators of FP16, the modern one others. A modern decoder after a reducing prefill compiles in
# test_build_decoders.py.
CASES = [
    *((d, GROUPED, p, *MERGED) for d in FOR for p in ("fp16", "int4")),
    ("modern", GROUPED, "fp32", *MERGED),
    exhaustive("legacy", GROUPED, "fp32", *MERGED),
    ("modern", EACH, "fp16", *MERGED),
    exhaustive("legacy", EACH, "fp16", *MERGED),
    *(exhaustive(d, EACH, "int4", *MERGED) for d in FOR),
    ("legacy", GROUPED, "fp16", *AFTER),
    exhaustive("modern", GROUPED, "fp16", *AFTER),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """By how many query heads share each key-value head."""
    folder, vision = tmp_path_factory.mktemp("checkpoints"), {"num_hidden_layers": 2}
    return {
        name: models.load(
            write_tiny(folder / str(kv_heads), vision=vision, text={"num_key_value_heads": kv_heads})
        )
        for name, kv_heads in HEADS.items()
    }


@pytest.mark.parametrize(
    ("dialect", "heads", "precision", "method", "name"), CASES, ids=lambda value: value.replace(" ", "-")
)
def test_a_decoder_passes_and_compiles(dialect, heads, precision, method, name, checkpoints, tmp_path):
    model, target = checkpoints[heads], targets.get(FOR[dialect])
    record = None
    if precision == "int4":
        record = quantize.make_record(target, block=32, head="int8", vision=None, awq=False)
    settings = {"layer": 1} if method == "fastv" else {}
    plan = model.plan(method, 16, settings)
    job = next(job for job in graph_jobs(model, plan, precision, target, record, ROWS) if job.name == name)
    path = write(model, job, target, record, tmp_path / "decoder.onnx")

    check_graph(path, target, static=False, quantized=job.quantized, opset=job.opset)
    inferred = read(path)
    refused = {
        other.name
        for other in map(targets.get, targets.names())
        if other.parser and lint(inferred, other, also=other.beside(quantized=job.quantized))
    }
    assert refused == ({"trt-10.3", "trt-10.13"} if dialect == "modern" else set())
    assert cache_updates(path) == (2 * LAYERS if dialect == "modern" else 0)
    assert rtx.compile_engine(path, {"sequence_length": (1, 1, ROWS)}).nbytes > 0


@pytest.mark.parametrize("precision", [exhaustive("fp32"), exhaustive("fp16"), "int4"])
@pytest.mark.parametrize("dialect", FOR)
def test_a_decoder_of_several_sequences_passes_and_compiles(dialect, precision, checkpoints, tmp_path):
    model, target = checkpoints["grouped heads"], targets.get(FOR[dialect])
    record = None
    if precision == "int4":
        record = quantize.make_record(target, block=32, head="int8", vision=None, awq=False)
    jobs = graph_jobs(model, model.plan("uniform", 16, {}), precision, target, record, ROWS, 4)
    job = next(job for job in jobs if job.name == "decoder_model_merged")
    path = write(model, job, target, record, tmp_path / "decoder.onnx")

    check_graph(path, target, static=False, quantized=job.quantized, opset=job.opset)
    graph = ir.load(path).graph
    shapes = {
        v.name: [d if isinstance(d, int) else d.value for d in v.shape]
        for v in (*graph.inputs, *graph.outputs)
    }
    assert shapes["past_lengths"] == [4]
    assert shapes["inputs_embeds"] == [4, "sequence_length", 64]
    assert shapes["position_ids"] == [4, "sequence_length"]
    assert shapes["logits"] == [4, 1, 512]
    assert shapes["past_key_values.1.value"] == [4, 2, ROWS, 16]
    assert shapes["present.1.value"] == [4, 2, ROWS if dialect == "modern" else "sequence_length", 16]
    assert cache_updates(path) == (2 * LAYERS if dialect == "modern" else 0)
    assert rtx.compile_engine(path, {"sequence_length": (1, 1, ROWS)}).nbytes > 0


def write(model, job, target, record, path):
    graph = job.trace()
    graph.ir_version = target.ir_version
    if record is not None:
        quantize.bind(graph, model.checkpoint, record)
    weights.bind(graph, model.checkpoint, lambda text: None)
    trace.simplify(graph)
    weights.save(graph, path, lambda count: None)
    return path


def cache_updates(path):
    """Caches that TensorRT-RTX writes in place: it has a layer for it, whose output must be the input's buffer."""
    log = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(log).create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(path))
    return sum(network.get_layer(i).type == trt.LayerType.KV_CACHE_UPDATE for i in range(network.num_layers))


def test_fp32_is_not_multiplied_in_tf32():
    """Its 10 bits of fraction would choose other tokens, and it is what the library does by default."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)

    task = Task(runtime="tensorrt_rtx", graph=Path("none.onnx"), profiles=[])
    config = _config(trt, task, builder, builder.create_network(0), None)
    assert not config.get_flag(trt.BuilderFlag.TF32)


def test_two_profiles_that_attention_has_no_kernel_for_say_so(tmp_path):
    """3 heads of 64 channels, as the demo's; refused or not, as the library of the day has it."""
    folder = write_tiny(
        tmp_path / "three",
        vision={"num_hidden_layers": 2},
        text={"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 64, "hidden_size": 192, "num_hidden_layers": 2},
    )  # fmt: skip
    model, target = models.load(folder), targets.get("rtx")
    jobs = graph_jobs(model, model.plan("uniform", 16, {}), "fp16", target, None, 1024)
    job = next(job for job in jobs if "merged" in job.name)
    path = write(model, job, target, None, tmp_path / "decoder.onnx")

    task = Task(runtime="tensorrt_rtx", graph=path, profiles=[{"sequence_length": (1, 1, 512)}])
    assert compile_engine(task).plan.nbytes > 0
    with pytest.raises(BuildError, match=r"dedicated kernel(.|\n)*\n--profiles 1"):
        compile_engine(
            Task(runtime="tensorrt_rtx", graph=path,
                 profiles=[{"sequence_length": (1, 1, 1)}, {"sequence_length": (1, 512, 512)}])
        )  # fmt: skip


def test_inputs_and_outputs_are_the_contract(checkpoints):
    """What builders and runtimes go by: one free axis, and whether past and present have one shape."""
    model = checkpoints["grouped heads"]
    free = {"sequence_length"}
    for dialect, name in FOR.items():
        plan = model.plan("uniform", 16, {})
        job = next(
            j for j in graph_jobs(model, plan, "fp16", targets.get(name), None, ROWS) if "merged" in j.name
        )
        graph = job.trace().graph
        values = [*graph.inputs, *graph.outputs]
        shapes = {v.name: [d if isinstance(d, int) else d.value for d in v.shape] for v in values}
        caches = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]

        assert {d for shape in shapes.values() for d in shape if isinstance(d, str)} == free
        assert [v.name for v in graph.inputs] == [
            "inputs_embeds", "position_ids", "past_lengths", *(f"past_key_values.{c}" for c in caches)
        ]  # fmt: skip
        assert [v.name for v in graph.outputs] == ["logits", *(f"present.{c}" for c in caches)]
        assert shapes["inputs_embeds"] == [1, "sequence_length", 64]
        assert shapes["past_lengths"] == [1]
        assert shapes["logits"] == [1, 1, 512]
        assert shapes["past_key_values.1.value"] == [1, 2, ROWS, 16]
        assert shapes["present.1.value"] == [1, 2, ROWS if dialect == "modern" else "sequence_length", 16]
        dtypes = {v.name: v.dtype for v in values}
        assert dtypes["past_lengths"] == dtypes["position_ids"] == ir.DataType.INT64


def test_each_layer_is_made_of_the_operators_of_its_dialect(checkpoints):
    model, counts = checkpoints["grouped heads"], {}
    for dialect, name in FOR.items():
        plan = model.plan("uniform", 16, {})
        job = next(
            j for j in graph_jobs(model, plan, "fp16", targets.get(name), None, ROWS) if "merged" in j.name
        )
        counts[dialect] = Counter(
            node.op_type for node in job.trace().graph if ".layers.1" in (node.name or "")
        )
    modern, legacy = counts["modern"], counts["legacy"]

    assert (modern["TensorScatter"], modern["Attention"]) == (2, 1)
    assert (modern["RotaryEmbedding"], modern["RMSNormalization"]) == (2, 2)
    assert modern["Softmax"] == 0
    # Seven linears, two products of scores and two of values.
    assert (legacy["MatMul"], legacy["Softmax"]) == (7 + 4, 1)
