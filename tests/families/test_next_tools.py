"""What else is done with a bundle, of a model that sees images in tiles: other targets, INT4, engines, drawings, plans."""

import json

import numpy as np
import onnx
import pytest
import torch
from anyres_checkpoints import Theirs, picture
from exhaustive import exhaustive
from PIL import Image
from reference.layer_by_layer import through_layers
from transformers import LlavaNextForConditionalGeneration

import fico_export
from fico_export import models
from fico_export.bundle.manifest import Manifest
from fico_export.devices import targets
from fico_export.exporter import weights
from fico_export.exporter.graphs import graph_jobs
from fico_export.exporter.lint import lint
from fico_export.exporter.trace import simplify
from fico_export.exporter.trace import trace as trace_graph
from fico_export.options import ExportOptions
from fico_export.plan.planner import PlanRequest, count
from fico_export.report.kept import kept
from fico_export.report.merges import encoder, trace
from fico_export.runtime.inputs.layouts.base import NEWLINE
from fico_export.runtime.inputs.preprocess import ImageProcessor
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.sampling import GREEDY

TILE = 16


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "wide.png"
    picture(200, 150, 4).save(path)
    return path


def test_five_grids_share_one_file_of_weights(make_bundle, checkpoint):
    one = make_bundle(checkpoint, 23, method="divprune", verify=False)
    five = make_bundle(checkpoint, 23, method="divprune", profile="all", verify=False)
    manifest = Manifest.load(five)
    stored = {
        name: {entry.value for tensor in onnx.load(five / manifest.graph(name).file, load_external_data=False).graph.initializer
               for entry in tensor.external_data if entry.key == "location"}
        for name in {profile.graph for profile in manifest.profiles}
    }  # fmt: skip

    assert [profile.graph for profile in manifest.profiles] == [
        "vision_encoder", "vision_encoder_3_tiles", "vision_encoder_3_tiles", "vision_encoder_4_tiles", "vision_encoder_4_tiles",
    ]  # fmt: skip
    assert len(set().union(*stored.values())) == 1
    assert size(five) < 1.15 * size(one)


def test_a_static_decoder_of_int4_calibrated_on_tiles_says_what_it_says_without_a_cache_of_its_own(
    make_bundle, checkpoint, image, tmp_path
):
    """AWQ reads prompts as the model was trained: unpadded, with newlines."""
    data = tmp_path / "set.jsonl"
    data.write_text(json.dumps({"image": str(image), "prompt": "What is it?"}) + "\n")
    bundle = fico_export.export(
        checkpoint,
        20,
        method="cls-topk",
        precision="int4",
        block=32,
        calibrate=data,
        target="ort",
        out=tmp_path / "int4",
    )

    with fico_export.load(bundle) as vlm:
        answer = vlm.generate("What is it?", image, max_new_tokens=4, sampling=GREEDY)
    assert answer.visual_tokens == 20
    assert len(answer.token_ids) == 4


@pytest.mark.exhaustive
def test_a_method_in_the_decoder_takes_all_tiles_of_an_image(make_bundle, checkpoint, image):
    bundle = make_bundle(checkpoint, 24, method="fastv", settings={"layer": 1}, verify=False)
    with fico_export.load(bundle) as vlm:
        found = kept(vlm, image, "What is it?")
        answer = vlm.generate("What is it?", image, max_new_tokens=2, sampling=GREEDY)

    assert answer.visual_tokens == 5 * TILE
    assert len(found.patches) == 24
    assert (np.diff(found.patches) > 0).all()


def test_a_method_in_the_decoder_leaves_newlines_where_they_stand(make_bundle, checkpoint, image):
    """All rows of an image of five tiles but the visual tokens that are dropped, as transformers' layers have it."""
    bundle = make_bundle(checkpoint, 24, method="fastv", settings={"layer": 1}, newlines="all", verify=False)
    model = LlavaNextForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with fico_export.load(bundle) as vlm:
        shown = vlm.encode_image(image)
        laid_out = vlm.layout.lay_out(vlm.formatter.encode([Message("user", "What is it?", 1)]), [shown])
        embeds = torch.from_numpy(laid_out.rows(vlm.embed, [shown]).embeds)
        logits, left, rows = through_layers(model, "fastv", embeds, laid_out.visual_rows, {0: 24})
        chat = vlm.chat()
        answer = chat.ask("What is it?", [shown], max_new_tokens=1, sampling=GREEDY)

        assert (laid_out.visual == NEWLINE).sum() == 8
        assert answer.token_ids == [int(logits.argmax())]
        assert chat.kept.tolist() == left.tolist()
        assert chat.cache_lengths == rows
        assert len(kept(vlm, image, "What is it?").patches) == 24


def test_the_graph_of_tiles_that_are_reduced_as_one_is_one_that_tensorrt_takes(checkpoint):
    options = {"method": "g-prune", "keep": 30, "tiling": "split", "unpad": True}
    model, target = models.load(checkpoint).shaped(ExportOptions.of(options)), targets.get("trt-10.3")
    plan = model.plan("g-prune", 30, {})
    graph = trace_graph(lambda: model.vision(plan, torch.float16), target.opset)
    weights.bind(graph, model.checkpoint, lambda text: None)
    simplify(graph)

    assert lint(graph, target) == []


@pytest.mark.parametrize(
    "options", [{}, exhaustive({"tiling": "split", "unpad": True})], ids=["per-tile", "split"]
)
def test_the_graph_of_every_number_of_tiles_compiles_without_a_gpu(checkpoint, options, tmp_path):
    rtx = pytest.importorskip("rtx", exc_type=ImportError, reason="needs TensorRT-RTX: pip install '.[rtx]'")
    asked = ExportOptions.of({"method": "g-prune", "keep": 23, "profile": "all"} | options)
    model, target = models.load(checkpoint).shaped(asked), targets.get("rtx")
    plan = model.plan("g-prune", 23, {})
    jobs = [job for job in graph_jobs(model, plan, "fp16", target) if job.name.startswith("vision_encoder")]

    assert len(jobs) == 3
    for job in jobs:
        graph = job.trace()
        graph.ir_version = target.ir_version
        weights.bind(graph, model.checkpoint, lambda text: None)
        simplify(graph)
        weights.save(graph, tmp_path / f"{job.name}.onnx", lambda count: None)
        assert rtx.compile_engine(tmp_path / f"{job.name}.onnx", capabilities=rtx.CAPABILITIES[:1]).nbytes > 0


def test_tiles_are_drawn_where_they_lie(make_bundle, checkpoint):
    bundle = make_bundle(checkpoint, 23, method="divprune", verify=False)
    with fico_export.load(bundle) as vlm:
        found = kept(vlm, picture(224, 112))
        cells = found.view.patch_of_pixels(224, 112)

    # The base shows all of the image, the grid without its padding above and below: in 2×2 tiles it is 112×56 of 112×112.
    assert cells.shape == (5, 112, 224)
    assert (cells[0] >= 0).all()
    assert cells[0, 0, 0] == 0
    assert cells[1, 0, 0] == TILE + 2 * 4  # the third row of its patches: two are padding
    assert cells[4, 111, 223] == 4 * TILE + 4 + 3
    assert ((cells[1:] >= 0).sum(0) == 1).all()
    assert found.view.box[1] < 0


def test_merges_are_followed_tile_by_tile(make_bundle, checkpoint, image):
    model = models.load(checkpoint).shaped(ExportOptions(method="ficoco-v", keep=23))
    bundle = make_bundle(checkpoint, 23, method="ficoco-v", settings={"first_layer": 1}, verify=False)
    with fico_export.load(bundle) as vlm:
        pixels = vlm.preprocess(image)
        features = vlm.encode_image(image)
        followed = trace(encoder(model, "ficoco-v", 23, {"first_layer": 1})("2x2"), vlm.feeds(pixels))
    shares = followed.shares(5 * TILE)

    assert followed.keep_index.tolist() == features.keep_index.tolist()
    assert shares.shape == (23, 5 * TILE)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-6)
    tiles = features.keep_index // TILE
    assert all(
        shares[row, : t * TILE].sum() + shares[row, (t + 1) * TILE :].sum() == 0
        for row, t in enumerate(tiles)
    )


@pytest.mark.parametrize(("options", "tiles"), [({}, 5), ({"profile": ("1x3",)}, 4), ({"method": "none"}, 5)])
def test_the_plan_counts_all_tiles(checkpoint, options, tiles):
    model = models.load(checkpoint)
    asked = {"method": "cls-topk", "keep": 20} | options
    if asked["method"] == "none":
        asked.pop("keep")
    work = count(model, PlanRequest(**asked))
    one = count(models.load(checkpoint), PlanRequest(method="none"))

    assert work.plan.visual_tokens == tiles * TILE
    assert work.vision["embedding"] == pytest.approx(one.vision["embedding"] * tiles / 5)
    assert work.vision["tower"] == pytest.approx(one.vision["tower"] * tiles / 5, rel=0.05)


@pytest.mark.parametrize("size", [(200, 150), (57, 56), (333, 100)])
def test_pixels_are_those_of_transformers_for_the_one_grid_that_papers_use(make_bundle, checkpoint, size):
    """Of a 2×2 bundle, whatever the image's shape: the processor with that pinpoint alone."""
    bundle = make_bundle(checkpoint, 23, method="divprune", verify=False)
    theirs = Theirs(checkpoint).processor.image_processor
    theirs.image_grid_pinpoints = [[112, 112]]
    shown = picture(*size)
    with fico_export.load(bundle) as vlm:
        mine = vlm.preprocess(shown).values
    np.testing.assert_array_equal(mine, np.asarray(theirs(shown)["pixel_values"][0]))


def test_the_processor_of_a_tile_is_a_square(checkpoint):
    processor = ImageProcessor.from_config(json.loads((checkpoint / "preprocessor_config.json").read_text()))

    assert processor(Image.new("RGB", (3, 2))).shape == (1, 3, 56, 56)


def size(bundle):
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
