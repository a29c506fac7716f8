"""`fico show` and `fico report` on a bundle: what they write, and what they refuse without writing anything."""

import base64
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import report_records as records
from cli_tools import copied, edit_json, flip_a_bit, in_own_process, in_this_process
from exhaustive import exhaustive
from pages import Page
from PIL import Image

import fico_export.api
from fico_export.bundle.manifest import Manifest
from fico_export.report import write
from fico_export.runtime.vlm import Vlm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(make_bundle, tiny_checkpoint):
    """64 patches of 14 px, every fourth kept: known without running anything."""
    return make_bundle(tiny_checkpoint, 16, method="uniform", verify=False)


@pytest.fixture(scope="module")
def inside(make_bundle, tiny_checkpoint):
    """Reduces within the decoder."""
    return make_bundle(tiny_checkpoint, 16, method="fastv", settings={"layer": 1}, verify=False)


@pytest.fixture
def photograph(tmp_path):
    """3:2, bright everywhere."""
    array = np.random.default_rng(0).integers(150, 256, (200, 300, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


@pytest.fixture
def fico(capsys):
    return lambda *arguments: in_this_process(capsys, "fico", *arguments)


def test_show_lights_the_kept_tokens_on_the_photograph(fico, bundle, photograph, tmp_path):
    """Uniform's positions by hand: the middles of 16 equal stretches of 64. The tower sees the middle 200×200 of 300×200."""
    outcome = fico("show", bundle, "--image", photograph, "--out", tmp_path / "out.png", "--json")
    said = outcome.json
    expected = [(2 * i + 1) * 64 // 32 for i in range(16)]
    drawn = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    scale = said["scale"]

    assert said["patches"] == expected
    assert (said["outside"], said["cls"], said["merges"]) == (0, False, False)
    assert drawn.shape == (200 * scale, 300 * scale, 3)
    for patch in range(64):
        row, column = divmod(patch, 8)
        y, x = (round((25 * i + 12.5) * scale) for i in (row, column))
        lit = drawn[y, x + round(50 * scale)].min() > 100
        assert lit == (patch in expected)
    assert drawn[:, : round(49 * scale)].max() < 150  # cropped away: hatched, dark


def test_show_needs_no_torch(bundle, photograph, tmp_path):
    blocked = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'onnx', 'onnx_ir', 'matplotlib'))"
    )
    entry = "from fico_export.cli.main import main; main()"
    line = [
        sys.executable,
        "-c",
        f"{blocked}; {entry}",
        "show",
        bundle,
        "--image",
        photograph,
        "--out",
        tmp_path / "out.png",
    ]
    outcome = in_own_process(list(map(str, line)))

    assert outcome.code == 0, outcome.err
    assert "16 of 64 patches kept" in outcome.out


def test_show_runs_prefill_where_the_decoder_chooses(fico, inside, photograph, tmp_path):
    line = ["show", inside, "--image", photograph, "--out", tmp_path / "out.png"]
    fico(*line).refuses("depends on the prompt", '--prompt "…"')
    assert not (tmp_path / "out.png").exists()
    said = fico(*line, "--prompt", "what is it?", "--json").json
    vlm = Vlm(inside)
    chat = vlm.chat()
    chat.ask("what is it?", [photograph], max_new_tokens=2)

    assert said["patches"] == chat.kept.tolist()
    assert len(said["patches"]) == 16


@pytest.mark.parametrize(
    ("method", "options", "offered"),
    [exhaustive("ficoco-l", {"settings": {"first_layer": 0}}, False), ("tome", {}, True)],
)
def test_show_offers_no_merges_that_it_cannot_draw(
    fico, make_bundle, tiny_checkpoint, photograph, tmp_path, method, options, offered
):
    bundle = make_bundle(tiny_checkpoint, 16, method=method, verify=False, **options)
    said = fico("show", bundle, "--image", photograph, "--out", tmp_path / "out.png", "--prompt", "hi")
    assert ("--merges draws which" in said.err) == offered


def test_show_draws_merges_only_where_there_are_some(fico, inside, photograph, tmp_path):
    line = [
        "show",
        inside,
        "--image",
        photograph,
        "--out",
        tmp_path / "out.png",
        "--prompt",
        "hi",
        "--merges",
    ]

    fico(*line).refuses("merges nothing before the decoder", "drop --merges")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    fico, bundle, photograph, tmp_path, command
):
    suffix = ".png" if command == "show" else ".html"
    (tmp_path / f"folder{suffix}").mkdir()
    before = sorted(tmp_path.iterdir())

    def refuses(out, *words):
        fico(command, bundle, "--image", photograph, "--out", out).refuses(*words)
        assert sorted(tmp_path.iterdir()) == before

    refuses(tmp_path / f"folder{suffix}", "is a folder", "--out")
    refuses(tmp_path / "gone" / f"out{suffix}", "there is no folder", "mkdir")
    refuses(tmp_path / "out.txt", f"does not end in {suffix}")
    if command == "show":
        refuses(photograph, "is also given to be read")


@pytest.mark.parametrize("command", ["show", "report"])
def test_bad_bundles_and_pictures_are_named_and_nothing_is_written(
    fico, bundle, photograph, tmp_path, command
):
    out = tmp_path / ("out.png" if command == "show" else "out.html")
    (tmp_path / "letter.png").write_text("Dear all")
    own = copied(bundle, tmp_path / "own")
    flip_a_bit(own / "onnx" / "vision_encoder.onnx")

    fico(command, tmp_path / "nowhere", "--image", photograph, "--out", out).refuses("is no bundle")
    fico(command, own, "--image", photograph, "--out", out).refuses("does not have the SHA-256")
    fico(command, bundle, "--image", tmp_path / "letter.png", "--out", out).refuses("is not an image")
    fico(command, bundle, "--image", tmp_path / "gone.png", "--out", out).refuses("there is no file")
    assert not list(tmp_path.glob("*out.*"))


@pytest.fixture(scope="module")
def reported(bundle, inside, tmp_path_factory):
    """A page of two bundles with a profile and an image, made once."""
    folder = tmp_path_factory.mktemp("report")
    Image.new("RGB", (90, 60), (200, 200, 200)).save(folder / "a&b<i>.png")
    manifests = [Manifest.load(bundle), Manifest.load(inside)]
    records.run(*map(records.measured, manifests)).save(folder / "profile.json")
    return folder, folder / "page.html", [bundle, inside]


def test_report_writes_one_whole_page(fico, reported):
    folder, page, bundles = reported
    given = [
        "--image",
        folder / "a&b<i>.png",
        "--prompt",
        "what <b>is</b> it?",
        "--profile",
        folder / "profile.json",
    ]
    outcome = fico("report", *bundles, *given, "--out", page, "--json")
    read = Page(page.read_text(encoding="utf-8"))

    assert outcome.json["bytes"] == page.stat().st_size
    for words in (
        "Waterfall", "a&b<i>.png", "what <b>is</b> it?", "16 of 64 patches kept", "vision_encoder", "FLOP per picture",
        "FLOP per token", "what this method drops before the decoder is gone", "it is not followed step by step",
    ):  # fmt: skip
        assert words in read.words, words
    assert "i" not in read.tags
    assert "b" not in read.tags
    assert read.tags.count("img") == 2
    assert sorted(p.name for p in folder.iterdir()) == ["a&b<i>.png", "page.html", "profile.json"]


def test_an_image_of_any_source_is_shown_and_reported_under_a_short_name(fico, bundle, photograph, tmp_path):
    url = "data:image/png;base64," + base64.b64encode(photograph.read_bytes()).decode()
    kept = [
        fico("show", bundle, "--image", image, "--out", tmp_path / "out.png", "--json").json["patches"]
        for image in (photograph, url)
    ]
    fico_export.api.report([bundle], tmp_path / "a.html", images=str(photograph))
    fico_export.api.report([bundle], tmp_path / "b.html", images=np.asarray(Image.open(photograph)))
    assert fico("report", bundle, "--image", url, "--out", tmp_path / "c.html").code == 0
    pages = [Page((tmp_path / name).read_text(encoding="utf-8")) for name in ("a.html", "b.html", "c.html")]

    assert kept[0] == kept[1]
    assert [page.tags.count("img") for page in pages] == [1, 1, 1]
    assert "photograph.png" in pages[0].words
    assert "the array given" in pages[1].words
    assert url[:60] not in pages[2].words


def test_show_scales_an_image_of_16_bits_by_the_range_given(fico, bundle, tmp_path):
    values = np.linspace(1000, 3000, 40_000).astype(np.uint16).reshape(200, 200)
    Image.fromarray(values).save(tmp_path / "depth.png")
    line = ["show", bundle, "--image", tmp_path / "depth.png", "--out", tmp_path / "out.png"]

    assert "warning:" in fico(*line).err
    by_itself = np.asarray(Image.open(tmp_path / "out.png")).max()
    ranged = fico(*line, "--image-range", "0,6000")
    assert ranged.code == 0
    assert "warning:" not in ranged.err
    assert by_itself == 255
    assert 126 <= np.asarray(Image.open(tmp_path / "out.png")).max() <= 128


def test_report_says_what_it_has_not(fico, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "find_spec", lambda name: None)
    fico("report", bundle, "--out", tmp_path / "page.html")
    words = Page((tmp_path / "page.html").read_text()).words

    assert "`fico profile BUNDLE…` makes one" in words
    assert "No image was given: --image PICTURE" in words
    assert "The graphs were not read" in words


def test_a_checkpoint_that_moved_leaves_out_the_maps_alone(fico, bundle, photograph, tmp_path):
    own = copied(bundle, tmp_path / "own")
    line = ["report", own, "--image", photograph, "--out", tmp_path / "page.html"]
    for source, words in (
        ("/gone/there", "is no longer at /gone/there"),
        ("owner/name", "a report does not download"),
    ):
        edit_json(own / "manifest.json", model__source=source)

        assert fico(*line).code == 0
        text = Page((tmp_path / "page.html").read_text()).words
        assert words in text
        assert "16 of 64 patches kept" in text
    (tmp_path / "page.html").unlink()
    fico(*line, "--model", tmp_path / "gone").refuses("no folder")
    assert not (tmp_path / "page.html").exists()


def test_what_was_measured_of_something_else_is_refused(fico, reported, bundle, tmp_path):
    folder, _, _ = reported
    records.run(records.measured(records.manifest("another"))).save(tmp_path / "other.json")
    (tmp_path / "results.json").write_text(json.dumps({"accuracy": 1}))
    line = ["report", bundle, "--out", tmp_path / "page.html"]

    fico(*line, "--profile", tmp_path / "other.json").refuses("is of other bundles", "another")
    fico(*line, "--profile", tmp_path / "gone.json").refuses("cannot read", "fico profile")
    fico(*line, "--evaluation", tmp_path / "results.json").refuses("is no evaluation", "scripts/evaluate.py")
    fico(*line, "--profile", folder / "profile.json", "--evaluation", tmp_path / "gone.json").refuses(
        "cannot read"
    )
    fico("report", bundle, *line[1:]).refuses("given twice")
    assert not (tmp_path / "page.html").exists()


def test_the_commands_of_the_document_run(fico, bundle, tmp_path, monkeypatch):
    """On another bundle of that name: exporting the demo is tested elsewhere."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```console\n(.*?)```", (ROOT / "docs" / "report.md").read_text(encoding="utf-8"), re.DOTALL
    )
    lines = [shlex.split(line[2:]) for block in blocks for line in block.splitlines()]
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "demo-dpp-k64-fp32").symlink_to(bundle)
    assert [name for name, *_ in lines] == ["python", "fico-export", "fico", "fico"]
    subprocess.run([sys.executable, *lines[0][1:]], check=True)
    for _, *arguments in lines[2:]:
        assert fico(*arguments).code == 0
    assert {"kept.png", "report.html", "scene.png"} <= {path.name for path in tmp_path.iterdir()}
