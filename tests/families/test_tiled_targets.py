"""Bundles of a SmolVLM and an InternVL for other targets: engines without a GPU, INT4, decoders that write their cache in place."""

import json

import numpy as np
import pytest
from anyres_checkpoints import picture
from exhaustive import exhaustive

import fico_export
from fico_export.calibration import sequences
from fico_export.devices import targets
from fico_export.exporter import weights
from fico_export.exporter.graphs import graph_jobs
from fico_export.exporter.lint import lint
from fico_export.exporter.trace import simplify
from fico_export.runtime.sampling import GREEDY

QUESTION, MORE = "What is it?", "And which colour?"


@pytest.fixture(scope="module")
def image():
    return picture(200, 150, 2)


def written(model, plan, target, path):
    """The vision graph of a bundle, in a file."""
    jobs = graph_jobs(model, plan, "fp16", target, None, 192)
    graph = next(job for job in jobs if job.name == "vision_encoder").trace()
    graph.ir_version = target.ir_version
    weights.bind(graph, model.checkpoint, lambda text: None)
    simplify(graph)
    weights.save(graph, path, lambda count: None)
    return graph


@pytest.mark.parametrize(
    ("name", "method", "profile"),
    [
        ("internvl", "cls-topk", "1"),
        exhaustive("smolvlm", "tome", "1"),
        exhaustive("internvl", "tome", "1"),
        exhaustive("internvl", "ficoco-v", "2x2"),
        exhaustive("smolvlm", "divprune", "2x4"),
    ],
)
def test_the_vision_graph_is_one_that_tensorrt_takes(tileds, tmp_path, name, method, profile):
    """And TensorRT-RTX compiles it without a GPU, where it is installed."""
    target, model = targets.get("trt-10.3"), tileds(name).shaped(profile, method=method)
    plan = model.plan(method, 9 * model.profile.tiles, {})
    graph = written(model, plan, target, tmp_path / "vision.onnx")

    assert lint(graph, target) == []
    rtx = pytest.importorskip("rtx", exc_type=ImportError, reason="needs TensorRT-RTX: pip install '.[rtx]'")
    engine = rtx.compile_engine(tmp_path / "vision.onnx", capabilities=rtx.CAPABILITIES[:1])
    assert engine.nbytes > 0


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        exhaustive("smolvlm", "fp16"),
        exhaustive("smolvlm", "int4"),
        exhaustive("internvl", "fp16"),
        ("internvl", "int4"),
    ],
)
def test_a_bundle_of_one_tile_compiles_without_a_gpu(tileds, tmp_path, name, precision):
    """All of its graphs, the decoder with a cache that it writes in place."""
    rtx = pytest.importorskip("rtx", exc_type=ImportError, reason="needs TensorRT-RTX: pip install '.[rtx]'")
    given = {"precision": precision, "target": "rtx", "max_context": 192, "verify": False}
    if precision == "int4":
        given["block"] = 32
    bundle = fico_export.export(tileds(name).folder, 9, method="divprune", out=tmp_path / "bundle", **given)
    manifest = json.loads((bundle / "manifest.json").read_text())

    assert {*manifest["graphs"]} == {"vision_encoder", "embed_tokens", "decoder_model_merged"}
    for graph in ("vision_encoder", "decoder_model_merged"):
        axes = {"sequence_length": (1, 1, 192)} if graph.startswith("decoder") else None
        path = bundle / manifest["graphs"][graph]["file"]
        assert rtx.compile_engine(path, axes, rtx.CAPABILITIES[:1]).nbytes > 0


def test_calibration_reads_prompts_as_transformers_decoder_is_given_them(tiled, image):
    """In the grids that a bundle has: every one, or a single tile."""
    for profile in ("all", "1"):
        (tokens,) = sequences(tiled.shaped(profile), [(image, QUESTION)])
        single = profile == "1"
        fed = tiled.theirs.inputs(([image], QUESTION), single=single)
        embeds = tiled.theirs.model.get_input_embeddings()(fed["input_ids"])[0].detach().numpy().copy()
        at = (fed["input_ids"][0] == tiled.model.tokens.image_id).numpy()
        embeds[at] = tiled.theirs.features(tiled.theirs.pixels(image, single=single)).reshape(-1, 64)

        np.testing.assert_allclose(tokens.embeds[0], embeds, atol=2e-5)
        assert tokens.positions[0].tolist() == list(range(len(embeds)))


@pytest.mark.parametrize(
    ("name", "calibrated"), [("smolvlm", True), exhaustive("smolvlm", False), exhaustive("internvl", True)]
)
def test_int4_is_what_torch_makes_of_the_rounded_weights(tileds, image, tmp_path, name, calibrated):
    """The export verifies it, layer by layer."""
    image.save(tmp_path / "image.png")
    (tmp_path / "set.jsonl").write_text(json.dumps({"image": "image.png", "prompt": QUESTION}) + "\n")
    bundle = fico_export.export(
        tileds(name).folder,
        9,
        method="divprune",
        precision="int4",
        block=32,
        target="ort",
        calibrate=tmp_path / "set.jsonl" if calibrated else None,
        out=tmp_path / "int4",
    )
    with fico_export.load(bundle) as vlm:
        answer = vlm.generate(QUESTION, image, max_new_tokens=4, sampling=GREEDY)
        assert vlm.manifest.quantization.scheme == ("awq" if calibrated else "rtn")
    assert answer.visual_tokens == 9
    assert len(answer.token_ids) == 4


@pytest.mark.parametrize("name", [exhaustive("smolvlm"), "internvl"])
def test_a_decoder_that_writes_its_cache_in_place_says_the_same(make_bundle, tileds, image, name):
    tiled = tileds(name)
    bundle = make_bundle(
        tiled.folder, method="none", profile="1", target="trt-11", max_context=192, verify=False
    )
    with fico_export.load(bundle) as vlm:
        chat = vlm.chat()
        first = chat.ask(QUESTION, image, max_new_tokens=6, sampling=GREEDY)
        second = chat.ask(MORE, image, max_new_tokens=6, sampling=GREEDY)

    turns = ([image], QUESTION), first.text, ([image], MORE)
    assert first.token_ids == tiled.theirs.answer(turns[0], new_tokens=6, single=True)
    assert second.token_ids == tiled.theirs.answer(*turns, new_tokens=6, single=True)
