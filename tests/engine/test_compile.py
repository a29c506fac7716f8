"""Every graph compiles in TensorRT-RTX, without a GPU in this machine: those of the default for three generations, of all
others for one, as each generation is compiled for anew."""

from pathlib import Path

import onnx_ir as ir
import pytest
from checkpoints import GRID24, write_tiny
from clip_checkpoints import write_clip
from exhaustive import exhaustive

from fico_export import models, reducers
from fico_export.devices import targets
from fico_export.errors import ConfigError
from fico_export.exporter import quantize, trace, weights
from fico_export.exporter.graphs import graph_jobs
from fico_export.models.clip_text import open_clip
from fico_export.reducers.base.reducer import Site

rtx = pytest.importorskip("rtx", exc_type=ImportError, reason="needs TensorRT-RTX: pip install '.[rtx]'")

TARGET = targets.get(targets.DEFAULT)
LONGEST = 1200


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """576 visual tokens; stacks no deeper than the methods' schedules need, for each layer takes time to trace."""
    folder = tmp_path_factory.mktemp("checkpoint") / "grid24-shallow"
    vision, text = GRID24 | {"num_hidden_layers": 4}, {"num_hidden_layers": 3}
    return models.load(write_tiny(folder, vision=vision, text=text))


def plan_of(model, method):
    """At K = 64, or as few tokens as the method can leave in so few layers."""
    for keep in (None,) if method == "none" else (64, 192):
        try:
            return model.plan(method, keep, {})
        except ConfigError as error:
            refused = error
    raise refused


def changed(model, plan, precision):
    """The graphs of a bundle that are this method's own; of `none`, all."""
    jobs = graph_jobs(model, plan, precision, TARGET)
    shared = {"embed_tokens", "decoder_model_merged", "decoder_with_past"} if plan.steps else set()
    if plan.steps and plan.handed_over == plan.visual_tokens:
        shared.add("vision_encoder")
    return [job for job in jobs if job.name not in shared]


def write(model, job, folder: Path, record=None) -> Path:
    graph = job.trace()
    graph.ir_version = TARGET.ir_version
    if record is not None:
        quantize.bind(graph, model.checkpoint, record)
    weights.bind(graph, model.checkpoint, lambda text: None)
    trace.simplify(graph)
    weights.save(graph, folder / Path(job.file).name, lambda count: None)
    return folder / Path(job.file).name


def free_axes(path: Path, least: int) -> dict[str, tuple[int, int, int]]:
    """Lengths of the axes that a graph leaves free: `least` new tokens or more, after any cache."""
    sizes = {
        "batch_size": (1, 1, 1),
        "sequence_length": (least, least + 8, LONGEST),
        "past_sequence_length": (0, 8, LONGEST),
        "total_sequence_length": (least, least + 16, 2 * LONGEST),
    }
    dims = {
        d.value for value in ir.load(path).graph.inputs for d in value.shape if isinstance(d, ir.SymbolicDim)
    }
    return {name: sizes[name.partition(".")[0]] for name in dims}


# One of each kind of graph compiles in every run; of the others the lint speaks, which a test holds against the compiler. A prefill
# that only drops compiles in test_build_decoders.py.
COMPILED = ("none", "ficoco-v", "g-prune", "tome", "dart", "mmtok", "ficoco-l")
LEFT = [name for name in reducers.names() if name not in COMPILED]


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        *((name, "fp16") for name in COMPILED),
        *(exhaustive(name, "fp16") for name in LEFT),
        (reducers.DEFAULT, "fp32"),
    ],
)
def test_the_graphs_of_every_method_compile(method, precision, model, tmp_path):
    plan = plan_of(model, method)
    if plan.reads("clip_text"):
        model = model.with_clip(open_clip(str(write_clip(tmp_path / "clip"))))
    jobs = changed(model, plan, precision)
    assert jobs
    for job in jobs:
        path = write(model, job, tmp_path)
        least = plan.handed_over + 2 if job.name == "decoder_prefill" else 1

        generations = rtx.CAPABILITIES if method in ("none", reducers.DEFAULT) else rtx.CAPABILITIES[:1]
        assert rtx.compile_engine(path, free_axes(path, least), generations).nbytes > 0


def test_the_graph_that_follows_a_reducing_prefill_compiles(model, tmp_path):
    """It is the same for every method that reduces in the decoder."""
    plans = (plan_of(model, method) for method in reducers.names())
    plan = next(plan for plan in plans if plan.at(Site.DECODER_LAYER))
    jobs = graph_jobs(model, plan, "fp16", TARGET)
    path = write(model, next(job for job in jobs if job.name == "decoder_with_past"), tmp_path)

    assert rtx.compile_engine(path, free_axes(path, 1)).nbytes > 0


def test_an_int4_decoder_compiles(model, tmp_path):
    """And a tower of INT8: what is written where weights are quantised has a form and an opset of its own."""
    record = quantize.make_record(TARGET, block=32, head="int8", vision="int8", awq=False)
    plan = plan_of(model, "uniform")
    jobs = {job.name: job for job in graph_jobs(model, plan, "int4", TARGET, record)}
    for name in ("vision_encoder", "decoder_model_merged"):
        path = write(model, jobs[name], tmp_path, record)

        assert "DequantizeLinear" in {node.op_type for node in ir.load(path).graph}
        assert rtx.compile_engine(path, free_axes(path, 1)).nbytes > 0


def test_a_graph_that_it_cannot_take_is_refused(tmp_path):
    """So that the tests above can fail."""
    x = ir.val("x", ir.DataType.FLOAT, [2, 3])
    node = ir.Node("", "Unique", [x], num_outputs=1, name="reduce.bad")
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": TARGET.opset})
    ir.save(ir.Model(graph, ir_version=TARGET.ir_version), tmp_path / "bad.onnx")

    with pytest.raises(rtx.CompileError, match=r"reduce\.bad"):
        rtx.compile_engine(tmp_path / "bad.onnx")
