"""Bundles of a Qwen-VL for other targets: decoders that write their cache in place, static caches, INT4, engines without a GPU."""

import json

import numpy as np
import pytest
import torch
from anyres_checkpoints import picture
from exhaustive import exhaustive

import fico_export
from fico_export.calibration import sequences
from fico_export.devices import targets
from fico_export.exporter import weights
from fico_export.exporter.graphs import graph_jobs
from fico_export.exporter.lint import lint
from fico_export.exporter.trace import simplify
from fico_export.parity.int4 import StreamedReference
from fico_export.parity.prompts import Prompt
from fico_export.parity.report import Report
from fico_export.progress import Silent
from fico_export.runtime.sampling import GREEDY

QUESTION, MORE = "What is it?", "And which colour?"
CELLS = (3, 5)
TARGETS = {"ort": {}, "trt-10.3": {"max_context": 192}, "trt-11": {"max_context": 192}}


@pytest.fixture(scope="module")
def image(qwens):
    return picture(*qwens("qwen3_vl").kind.size(*CELLS), 2)


@pytest.mark.parametrize("target", ["ort", exhaustive("trt-10.3"), exhaustive("trt-11")])
def test_answers_are_those_of_transformers_whatever_the_target(make_bundle, qwens, image, target):
    """Of the model with planes, which each kind of decoder adds to a prompt's rows and to none after."""
    qwen = qwens("qwen3_vl")
    resolution = qwen.kind.resolution(*CELLS)
    bundle = make_bundle(
        qwen.folder, method="none", resolution=resolution, target=target, verify=False, **TARGETS[target]
    )
    with fico_export.load(bundle) as vlm:
        chat = vlm.chat()
        first = chat.ask(QUESTION, image, max_new_tokens=6, sampling=GREEDY)
        second = chat.ask(MORE, image, max_new_tokens=6, sampling=GREEDY)

    assert first.token_ids == qwen.theirs.answer(([image], QUESTION), new_tokens=6)
    turns = ([image], QUESTION), first.text, ([image], MORE)
    assert second.token_ids == qwen.theirs.answer(*turns, new_tokens=6)
    assert second.cached_tokens >= first.prompt_tokens


@pytest.fixture
def data(image, tmp_path):
    image.save(tmp_path / "image.png")
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"image": "image.png", "prompt": QUESTION}) + "\n")
    return path


def test_calibration_reads_prompts_with_their_planes_and_places(qwen):
    """What transformers' decoder is given for the same image and question."""
    image = picture(*qwen.kind.size(*CELLS), 2)
    (tokens,) = sequences(qwen.shaped(qwen.kind.resolution(*CELLS)), [(image, QUESTION)])
    fed, (features, planes) = qwen.theirs.inputs(([image], QUESTION)), qwen.theirs.features(image)
    at = (fed["input_ids"][0] == qwen.model.tokens.image_id).numpy()
    embeds = qwen.theirs.model.get_input_embeddings()(fed["input_ids"])[0].detach().numpy().copy()
    embeds[at] = features

    np.testing.assert_allclose(tokens.embeds[0], embeds, atol=2e-5)
    np.testing.assert_array_equal(tokens.positions[:, 0], qwen.theirs.positions(fed))
    assert (tokens.planes is None) == (planes is None)
    if planes is not None:
        np.testing.assert_allclose(tokens.planes[0][:, at], planes, atol=2e-5)
        assert not tokens.planes[0][:, ~at].any()


def test_a_decoder_that_is_run_layer_by_layer_adds_planes_too(qwen):
    """What INT4 is calibrated and verified by."""
    image, model = picture(*qwen.kind.size(*CELLS), 2), qwen.shaped(qwen.kind.resolution(*CELLS))
    (tokens,) = sequences(model, [(image, QUESTION)])
    planes = None if tokens.planes is None else tokens.planes[0].numpy()
    given = Prompt(tokens.embeds[0].numpy(), tokens.positions[:, 0].numpy(), 0, planes)
    reference = StreamedReference(model.checkpoint, model.checkpoint, model.decoder_config)
    (logits,) = reference.logits([given], Report("bundle", "fp32"), Silent())

    np.testing.assert_allclose(logits, qwen.theirs.logits(given.embeds, given.positions, planes), atol=1e-4)


@pytest.mark.parametrize("calibrated", [exhaustive(False), True])
def test_int4_is_what_torch_makes_of_the_rounded_weights(qwens, image, data, tmp_path, calibrated):
    """The export verifies it, layer by layer, planes and all."""
    qwen = qwens("qwen3_vl")
    bundle = fico_export.export(
        qwen.folder,
        method="none",
        resolution=qwen.kind.resolution(*CELLS),
        precision="int4",
        block=32,
        target="ort",
        calibrate=data if calibrated else None,
        out=tmp_path / "int4",
    )

    with fico_export.load(bundle) as vlm:
        answer = vlm.generate(QUESTION, image, max_new_tokens=4, sampling=GREEDY)
        assert vlm.manifest.quantization.scheme == ("awq" if calibrated else "rtn")
    assert answer.visual_tokens == CELLS[0] * CELLS[1]
    assert len(answer.token_ids) == 4


def written(model, job, target, path):
    graph = job.trace()
    graph.ir_version = target.ir_version
    weights.bind(graph, model.checkpoint, lambda text: None)
    simplify(graph)
    weights.save(graph, path, lambda count: None)
    return graph


@pytest.mark.parametrize(
    ("family", "cells"),
    [
        ("qwen2_5_vl", (4, 4)),
        exhaustive("qwen2_5_vl", (3, 5)),
        exhaustive("qwen3_vl", (4, 4)),
        ("qwen3_vl", (3, 5)),
    ],
)
def test_the_vision_graph_is_one_that_tensorrt_takes(qwens, family, cells, tmp_path):
    """Whole windows and ragged ones; and TensorRT-RTX compiles it without a GPU, where it is installed."""
    qwen, target = qwens(family), targets.get("trt-10.3")
    model = qwen.shaped(qwen.kind.resolution(*cells), method="divprune")
    jobs = graph_jobs(model, model.plan("divprune", 7, {}), "fp16", target, None, 192)
    job = next(job for job in jobs if job.name == "vision_encoder")
    graph = written(model, job, target, tmp_path / "vision.onnx")

    assert lint(graph, target) == []
    rtx = pytest.importorskip("rtx", exc_type=ImportError, reason="needs TensorRT-RTX: pip install '.[rtx]'")
    engine = rtx.compile_engine(tmp_path / "vision.onnx", capabilities=rtx.CAPABILITIES[:1])
    assert engine.nbytes > 0


@pytest.mark.parametrize("target", [exhaustive("trt-10.3"), "trt-11"])
def test_a_static_decoder_that_adds_planes_compiles(qwens, target, tmp_path):
    rtx = pytest.importorskip("rtx", exc_type=ImportError, reason="needs TensorRT-RTX: pip install '.[rtx]'")
    model, target = qwens("qwen3_vl").shaped("96x160"), targets.get(target)
    jobs = graph_jobs(model, model.plan("none", None, {}), "fp32", target, None, 192)
    job = next(job for job in jobs if job.name == "decoder_model_merged")
    graph = written(model, job, target, tmp_path / "decoder.onnx")
    shapes = {v.name: [d if isinstance(d, int) else d.value for d in v.shape] for v in graph.graph.inputs}

    assert shapes["position_ids"] == [3, 1, "sequence_length"]
    assert shapes["deepstack_embeds"] == [1, 3, "sequence_length", 64]
    assert rtx.compile_engine(tmp_path / "decoder.onnx", {"sequence_length": (1, 1, 192)}).nbytes > 0


def test_planes_are_in_the_bundles_precision(qwens):
    model = qwens("qwen3_vl").shaped("96x160")
    module = model.vision(model.plan("none", None, {}), torch.float16, profile=model.profile)

    outputs = {port.name: port for port in module.ports().outputs}
    assert outputs["deepstack_features"].dtype is torch.float16
    assert outputs["deepstack_features"].axes == (1, 3, 15, 64)
