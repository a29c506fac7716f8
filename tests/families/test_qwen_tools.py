"""What is done with a bundle of a Qwen-VL: verified, shown, reported, planned, talked with."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from anyres_checkpoints import picture
from cli_tools import in_this_process
from PIL import Image

import fico_export
from fico_export.models.mergers.joined import Joined
from fico_export.report.kept import kept
from fico_export.report.merges import encoder, trace
from fico_export.runtime.backends.ort.decoder import Decoder
from fico_export.runtime.sampling import GREEDY
from fico_export.runtime.vlm import Vlm

QUESTION, MORE = "What is it?", "And which colour?"
CELLS, KEEP = (3, 5), 7


@pytest.fixture
def fico(capsys):
    return lambda *arguments: in_this_process(capsys, "fico", *arguments)


@pytest.fixture(scope="module")
def bundle_of(make_bundle):
    """bundle_of(qwen, method) → a bundle of one resolution, not verified yet."""

    def make(qwen, method="divprune"):
        resolution = qwen.kind.resolution(*CELLS)
        return make_bundle(
            qwen.folder, KEEP, method=method, positions="original", resolution=resolution, verify=False
        )

    return make


@pytest.fixture
def image(tmp_path):
    """Twice as wide as it is high."""
    picture(300, 150, 4).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def test_a_bundle_is_verified_against_transformers(fico, qwen, bundle_of):
    outcome = fico("verify", bundle_of(qwen), "--model", qwen.folder, "--json")
    checks = outcome.json["checks"]

    assert outcome.code == 0, outcome.err
    assert {(check["graph"], check["metric"]) for check in checks} >= {
        ("vision_encoder", "kept-index agreement"),
        ("vision_encoder", "cosine"),
        ("tower", "cosine to transformers"),
        ("decoder_model_merged", "cosine"),
        ("answers", "greedy tokens equal"),
    }
    assert {check["status"] for check in checks} == {"passed"}


def without_planes(step):
    def run(self, steps):
        return step(self, [one._replace(planes=None) for one in steps])

    return run


def with_rolled_planes(encode):
    def run(self, pixels, *given):
        found = encode(self, pixels, *given)
        return replace(found, planes=np.roll(found.planes, 1, axis=1))

    return run


def in_another_order(plane):
    def run(self, layer, x):
        return plane(self, self.planes[-1 - self.planes.index(layer)], x)

    return run


@pytest.mark.parametrize(
    ("owner", "name", "broken", "graph"),
    [
        (Decoder, "step", without_planes, "answers"),
        (Vlm, "encode_pixels", with_rolled_planes, "vision_encoder"),
        (Joined, "plane", in_another_order, "tower"),
    ],
    ids=["dropped", "of other tokens", "of other layers"],
)
def test_planes_that_are_not_what_they_should_be_fail(
    fico, qwens, bundle_of, monkeypatch, owner, name, broken, graph
):
    """Dropped on the way to the decoder, of other tokens than the features, made by each other's mergers."""
    qwen = qwens("qwen3_vl")
    bundle = bundle_of(qwen)
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    outcome = fico("verify", bundle, "--model", qwen.folder, "--json")

    assert outcome.code == 1
    assert graph in {check["graph"] for check in outcome.json["checks"] if check["status"] == "failed"}


def test_the_cells_that_are_kept_are_drawn_where_they_lie(fico, qwen, bundle_of, image, tmp_path):
    bundle = bundle_of(qwen)
    outcome = fico("show", bundle, "--image", image, "--out", tmp_path / "out.png", "--json")
    with fico_export.load(bundle) as vlm:
        index = vlm.encode_image(image).keep_index.tolist()
        cells = kept(vlm, image).view.patch_of_pixels(300, 150)

    assert outcome.json["patches"] == index
    assert (outcome.json["outside"], outcome.json["cls"]) == (0, False)
    # The whole image is squeezed to 3×5 cells: each shows 60×50 of its pixels.
    rows, columns = np.mgrid[0:150, 0:300]
    np.testing.assert_array_equal(cells[0], rows // 50 * 5 + columns // 60)
    drawn, scale = np.asarray(Image.open(tmp_path / "out.png")).astype(int), outcome.json["scale"]
    plain = np.asarray(Image.open(image).resize(drawn.shape[1::-1])).astype(int)
    for cell in range(15):
        y, x = round((cell // 5 * 50 + 25) * scale), round((cell % 5 * 60 + 30) * scale)
        lit = drawn[y - 4 : y + 4, x - 4 : x + 4].mean() > 0.8 * plain[y - 4 : y + 4, x - 4 : x + 4].mean()
        assert lit == (cell in index), cell


def test_merges_of_cells_are_followed(fico, qwens, bundle_of, image, tmp_path):
    """With planes among the channels that are merged: all of a cell goes where its weights say."""
    qwen = qwens("qwen3_vl")
    bundle, model = bundle_of(qwen, "tome"), qwen.shaped(qwen.kind.resolution(*CELLS), method="tome")
    with fico_export.load(bundle) as vlm:
        features = vlm.encode_image(image)
        followed = trace(
            encoder(model, "tome", KEEP, {})(model.profile.name), vlm.feeds(vlm.preprocess(image))
        )
    weights = followed.weights(15)

    assert followed.keep_index.tolist() == features.keep_index.tolist()
    assert [len(step.live) for step in followed.steps] == [13, 11, 9, 7]
    assert all(step.error < 1e-4 for step in followed.steps)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert (np.count_nonzero(weights > 1e-6, axis=0) == 1).all()  # each cell is in one that is left
    shown = fico(
        "show",
        bundle,
        "--image",
        image,
        "--merges",
        "--model",
        qwen.folder,
        "--out",
        tmp_path / "m.png",
        "--json",
    )
    assert shown.json["merges"] is True


def test_a_page_reports_a_bundle(fico, qwen, bundle_of, image, tmp_path):
    outcome = fico("report", bundle_of(qwen), "--image", image, "--out", tmp_path / "page.html", "--json")

    assert outcome.code == 0, outcome.err
    page = (tmp_path / "page.html").read_text()
    assert f"{KEEP} of 15" in page


def test_the_manifest_says_what_the_decoder_takes(fico, qwen, bundle_of):
    said = fico("inspect", bundle_of(qwen), "--check", "--json").json

    assert said["hashes_checked"] is True
    assert said["model"]["model_type"] == qwen.family
    assert said["layout"] == {"rule": "grid", "axes": 3, "numbers": {}, "texts": {}}
    inputs = {spec["name"]: spec["shape"] for spec in said["graphs"]["decoder_model_merged"]["inputs"]}
    assert inputs["position_ids"][0] == 3
    assert ("deepstack_embeds" in inputs) == bool(qwen.kind.planes)


def test_the_plan_counts_the_tokens_of_the_resolution(fico, qwen):
    options = [
        "--method",
        "divprune",
        "--keep",
        KEEP,
        "--device",
        "orin-nano-8gb",
        "--precision",
        "fp16",
        "--json",
    ]
    small, large = (
        fico("plan", "--model", qwen.folder, "--resolution", qwen.kind.resolution(*cells), *options).json[
            "estimate"
        ]
        for cells in (CELLS, (12, 10))
    )

    assert (small["visual_tokens"], small["keep"], large["visual_tokens"]) == (15, KEEP, 120)
    for one, other in zip(small["speeds"], large["speeds"], strict=True):
        assert one["vision_ms"]["likely"] < other["vision_ms"]["likely"]


def test_a_conversation_is_that_of_python(fico, qwen, bundle_of, image, monkeypatch):
    bundle = bundle_of(qwen)
    with fico_export.load(bundle) as vlm:
        chat = vlm.chat()
        want = [
            chat.ask(text, images, max_new_tokens=6, sampling=GREEDY).token_ids
            for text, images in ((QUESTION, [image]), (MORE, []), (MORE, [image]))
        ]
    lines = f"/image {image}\n{QUESTION}\n{MORE}\n/image {image}\n{MORE}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    outcome = fico("chat", bundle, "--max-new-tokens", 6, "--greedy", "--json")

    assert outcome.code == 0
    assert [json.loads(line)["token_ids"] for line in outcome.out.splitlines()] == want
