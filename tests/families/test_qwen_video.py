"""Videos of Qwen3-VL against transformers: frames in pairs, each shown as an image of its own after the text of its time."""

import re
import shutil
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from anyres_checkpoints import picture
from cli_tools import in_this_process
from exhaustive import exhaustive
from qwen_checkpoints import CHATML, Qwen
from qwen_videos import FPS, Theirs
from reference import greedy
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

import fico_export
from fico_export.bundle.consistency import first_contradiction
from fico_export.bundle.manifest import Manifest
from fico_export.bundle.profiles import Profile
from fico_export.errors import ConfigError, InputError
from fico_export.options import ExportOptions
from fico_export.runtime.backends.base import Step
from fico_export.runtime.inputs import video as video_source
from fico_export.runtime.inputs.layouts import grid
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.sampling import GREEDY

QUESTION, MORE = "What is it?", "And which colour?"
CELLS = (3, 5)
TOKENS = CELLS[0] * CELLS[1]
FRAMES, PAIRS = 6, 3  # of nine: 0, 2, 3, 5, 6 and 8
NINE = [picture(90, 60, i) for i in range(9)]
VIDEO = fico_export.Video(NINE, fps=FPS)
# The public template's, beside that of images.
SHOWN = "{%- elif p.type == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}{%- else %}"


@pytest.fixture(scope="module")
def qwen(shared, qwens):
    """With a template that shows videos."""

    def write(folder):
        shutil.copytree(qwens("qwen3_vl").folder, folder, dirs_exist_ok=True)
        (folder / "chat_template.jinja").write_text(CHATML.replace("{%- else %}", SHOWN, 1))

    return Qwen("qwen3_vl", shared("qwen3_vl_video", write))


@pytest.fixture(scope="module")
def theirs(qwen):
    return Theirs(qwen, qwen.kind.size(*CELLS), FRAMES)


@pytest.fixture(scope="module")
def whole(make_bundle, qwen):
    """All tokens."""
    resolutions = (qwen.kind.resolution(*CELLS), qwen.kind.resolution(4, 4))
    with fico_export.load(
        make_bundle(qwen.folder, method="none", resolution=resolutions, frames=FRAMES)
    ) as vlm:
        yield vlm


def laid_out(vlm, *shown):
    """The prompt about images and videos, as the decoder takes it."""
    videos = sum(isinstance(one, fico_export.Video) for one in shown)
    ids = vlm.formatter.encode([Message("user", QUESTION, len(shown) - videos, videos)])
    encoded = [vlm.encode_image(one, among=max(1, len(shown) - videos)) for one in shown]
    return ids, encoded, vlm.layout.lay_out(ids, encoded)


def test_features_prompt_positions_and_answer_are_those_of_transformers(whole, theirs):
    fed = theirs.inputs(([], [NINE], QUESTION))
    ids, (video,), prompt = laid_out(whole, VIDEO)
    said = whole.generate(QUESTION, VIDEO, max_new_tokens=8, sampling=GREEDY)
    text = whole.formatter.tokenizer.decode(fed["input_ids"][0].tolist(), skip_special_tokens=False)

    # By the public template's marks around all, which transformers 5 leaves there.
    times = re.findall(r"<([\d.]+) seconds><\|vision_start\|>(?:<\|video_pad\|>){15}<\|vision_end\|>", text)
    assert times == ["0.6", "2.4", "4.1"]
    assert whole.layout.whole_ids(ids, [video.size]) == fed["input_ids"][0].tolist()
    assert prompt.ids[prompt.visual < 0].tolist() == [
        token for token in fed["input_ids"][0].tolist() if token != whole.manifest.tokens.video_id
    ]
    assert said.prompt_tokens == fed["input_ids"].shape[1] == len(prompt.ids)
    np.testing.assert_array_equal(prompt.positions, theirs.positions(fed))
    assert prompt.next_position == theirs.positions(fed).max() + 1
    features, planes = theirs.features(NINE)
    np.testing.assert_allclose(video.features, features, atol=1e-4)
    np.testing.assert_allclose(video.planes, planes, atol=1e-4)
    assert said.token_ids == theirs.answer(([], [NINE], QUESTION))
    assert said.visual_tokens == PAIRS * TOKENS


def test_frames_differ_within_a_pair_and_pairs_from_each_other(whole, theirs):
    """What the test above could not tell apart otherwise."""
    right, _ = theirs.features(NINE)
    for other in (NINE[::-1], [NINE[i // 2 * 2] for i in range(9)], NINE[:1] * 9):
        assert np.abs(theirs.features(other)[0] - right).max() > 0.01
        features = whole.encode_image(fico_export.Video(other)).features
        np.testing.assert_allclose(features, theirs.features(other)[0], atol=1e-4)


def test_an_image_with_videos_and_further_turns(whole, theirs, qwen):
    image = picture(*qwen.kind.size(4, 4), 7)
    other = [picture(70, 80, i) for i in range(20, 27)]
    videos = [VIDEO, fico_export.Video(other, fps=FPS)]

    said = whole.generate(QUESTION, [*videos, image], max_new_tokens=8, sampling=GREEDY)
    assert said.token_ids == theirs.answer(([image], [NINE, other], QUESTION))
    asked, chat = [], whole.chat()
    turns = [(QUESTION, [], [NINE]), (MORE, [image], []), ("And this?", [], [other]), ("How many?", [], [])]
    for text, images, moving in turns:
        given = [*images, *(fico_export.Video(frames, fps=FPS) for frames in moving)]
        said = chat.ask(text, given, max_new_tokens=4, sampling=GREEDY)
        asked.append((images, moving, text))
        assert said.token_ids == theirs.answer(*asked, new_tokens=4), text
        asked.append(said.text)
    assert said.cached_tokens > said.prompt_tokens - 40  # nothing shown was computed again


@pytest.mark.parametrize(("total", "count", "fps"), [(9, 6, 1.7), (100, 8, 29.97), (31, 30, 24), (7, 2, 0.5), (5000, 64, 60)])  # fmt: skip
def test_frames_and_times_are_those_of_transformers(theirs, total, count, fps):
    about = VideoMetadata(total_num_frames=total, fps=fps)
    indices = Qwen3VLVideoProcessor.sample_frames(theirs.processor.video_processor, about, num_frames=count)
    times = theirs.processor._calculate_timestamps(indices, fps)

    assert grid.sample(total, count) == indices.tolist()
    pairs = list(pairwise(indices / fps))[::2]
    assert [grid.time(pair) for pair in pairs] == [f"<{time:.1f} seconds>" for time in times]


@pytest.mark.parametrize(
    ("keep", "positions"),
    [
        (14, "original"),
        exhaustive(3, "compact"),
        exhaustive(15, "original"),
        exhaustive(15, "compact"),
        exhaustive(14, "compact"),
        exhaustive(3, "original"),
    ],
)
def test_exactly_k_are_kept_in_equal_shares(make_bundle, qwen, theirs, keep, positions):
    """And what follows is transformers' decoder on the rows that are left, at the places and with the planes that they had."""
    features, planes = theirs.features(NINE)
    shares = [keep // PAIRS + (pair < keep % PAIRS) for pair in range(PAIRS)]
    starts = range(0, PAIRS * TOKENS, TOKENS)
    left = [
        greedy.divprune(features[start : start + TOKENS], share)[1]
        for start, share in zip(starts, shares, strict=True)
    ]
    index = np.concatenate([start + np.asarray(kept) for start, kept in zip(starts, left, strict=True)])
    embeds, places, added = left_of(qwen, theirs, features, planes, index)
    if positions == "compact":
        places = np.tile(np.arange(len(embeds)), (3, 1))
    bundle = make_bundle(
        qwen.folder, keep, method="divprune", positions=positions, resolution=qwen.kind.resolution(*CELLS),
        frames=FRAMES, verify=keep == 14,
    )  # fmt: skip
    with fico_export.load(bundle) as vlm:
        profile = vlm.manifest.profiles[-1]
        _, (video,), prompt = laid_out(vlm, VIDEO)
        rows = prompt.rows(vlm.embed, [video])
        (logits,) = vlm.decoder.step([Step(vlm.decoder.new_cache(), *rows)])
        said = vlm.generate(QUESTION, VIDEO, max_new_tokens=1, sampling=GREEDY)

    assert (profile.handed_over, profile.shares) == (keep, [(1, share) for share in shares])
    assert said.visual_tokens == len(video.features) == keep
    assert video.keep_index.tolist() == index.tolist()
    np.testing.assert_array_equal(rows.positions, places)
    np.testing.assert_allclose(rows.embeds, embeds, atol=1e-4)
    np.testing.assert_allclose(rows.planes, added, atol=1e-4)
    expected = qwen.theirs.logits(embeds, places, added)[-1]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert said.token_ids == [int(expected.argmax())]


def left_of(qwen, theirs, features, planes, index):
    """Embeddings [S, C], positions [3, S] and planes [L, S, C] of the prompt about a video of which an index is left."""
    fed = theirs.inputs(([], [NINE], QUESTION))
    ids = fed["input_ids"][0]
    at = np.flatnonzero(ids.numpy() == qwen.model.tokens.video_id)
    embeds = theirs.model.get_input_embeddings()(ids).detach().numpy().copy()
    added = np.zeros((len(planes), *embeds.shape), np.float32)
    embeds[at], added[:, at] = features, planes
    stays = np.ones(len(ids), bool)
    stays[np.delete(at, index)] = False
    return embeds[stays], theirs.positions(fed)[:, stays], added[:, stays]


@pytest.mark.parametrize("method", ["tome", exhaustive("visionzip")])
def test_a_pair_of_equal_frames_is_reduced_in_the_tower_as_a_still_image(make_bundle, qwen, method):
    images, options = [NINE[0], NINE[7]], {"method": method, "resolution": qwen.kind.resolution(*CELLS)}
    with fico_export.load(make_bundle(qwen.folder, 7, verify=False, **options)) as vlm:
        stills = [vlm.encode_image(image) for image in images]
    with fico_export.load(make_bundle(qwen.folder, 14, frames=4, **options)) as vlm:
        video = vlm.encode_image(fico_export.Video([image for image in images for _ in range(2)]))

    for pair, still in enumerate(stills):
        rows = slice(7 * pair, 7 * pair + 7)
        assert video.keep_index[rows].tolist() == (still.keep_index + TOKENS * pair).tolist()
        np.testing.assert_allclose(video.features[rows], still.features, atol=1e-4)
        np.testing.assert_allclose(video.planes[:, rows], still.planes, atol=1e-4)


def times_of(vlm, video):
    return [vlm.formatter.tokenizer.decode(list(text)) for text in vlm.preprocess(video).size.texts]


def test_how_many_frames_come_in_a_second_is_what_a_file_says(whole, tmp_path):
    for i, frame in enumerate(NINE):
        frame.save(tmp_path / f"{i}.png")
    for name in ("all.gif", "all.webp", "still.gif"):
        lasts = 0 if name == "still.gif" else 500
        NINE[0].save(tmp_path.parent / name, save_all=True, append_images=NINE[1:], duration=lasts)
    usual = ["<0.0 seconds>", "<0.2 seconds>", "<0.3 seconds>"]
    halves = ["<0.5 seconds>", "<2.0 seconds>", "<3.5 seconds>"]

    for source in (NINE, tmp_path, tmp_path.parent / "still.gif"):
        assert times_of(whole, fico_export.Video(source)) == usual
        assert times_of(whole, fico_export.Video(source, fps=Fraction(2))) == halves
    for name in ("all.gif", "all.webp"):
        assert times_of(whole, fico_export.Video(tmp_path.parent / name)) == halves
        assert times_of(whole, fico_export.Video(tmp_path.parent / name, fps=24)) == usual


def test_a_video_file_says_how_many_frames_come_in_a_second(whole, tmp_path):
    av = pytest.importorskip("av", reason="pip install '.[video]'")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 96, 64, "yuv420p", 4_000_000
        for frame in NINE:
            container.mux(stream.encode(av.VideoFrame.from_image(frame.resize((96, 64)))))
        container.mux(stream.encode())

    assert times_of(whole, fico_export.Video(tmp_path / "clip.mp4")) == [
        "<0.5 seconds>", "<2.0 seconds>", "<3.5 seconds>",
    ]  # fmt: skip


def test_a_prompt_has_room_for_the_text_of_times_too(whole):
    """Of which a later video has more."""
    early, late = fico_export.Video(NINE), fico_export.Video(NINE, fps=0.001)
    for video in (early, late):
        said = whole.generate(QUESTION, video, max_new_tokens=1)
        encoded = whole.encode_image(video)
        layout = whole.layout.videos
        assert layout.rows(encoded.size) == len(encoded.block.ids)
        assert layout.span(encoded.size) == encoded.span
        assert said.prompt_tokens == len(laid_out(whole, video)[2].ids)
    assert layout.rows(encoded.size) > layout.rows(whole.preprocess(early).size)


def test_a_graph_of_one_pair_serves_all_where_nothing_is_reduced(whole, qwen):
    *stills, video = whole.manifest.profiles
    shapes = whole.manifest.graphs[video.graph].shapes()
    side = [CELLS[0] * qwen.kind.cell, CELLS[1] * qwen.kind.cell]

    assert [profile.frames for profile in whole.manifest.profiles] == [1, 1, 2]
    assert (video.name, video.tiles, video.runs, list(video.size)) == ("video", PAIRS, PAIRS, side)
    assert shapes["pixel_values"] == [2, 3, *side]
    assert Profile.model_validate(stills[0].model_dump(exclude={"frames"})) == stills[0]  # as manifests were
    assert {"start", "end"} == whole.manifest.layout.numbers.keys()


@pytest.mark.parametrize("count", [1, 3, 7, 256])
def test_a_manifest_whose_pixels_are_no_whole_pairs_is_refused(whole, count):
    content = whole.manifest.model_dump(mode="json")
    content["profiles"][-1]["input_shape"][0] = count

    found = first_contradiction(Manifest.model_validate(content))
    assert found.startswith("the profile video has 3 tiles of 2 frames")
    assert found.endswith(f"pixel_values of {count}")


@pytest.mark.parametrize(
    ("frames", "fixed"), [(0, 2), (1, 2), (3, 2), (7, 6), (-4, 2), (257, 256), (1000, 256)]
)
def test_frames_that_are_no_pairs_are_refused_with_the_nearest_that_are(qwen, frames, fixed):
    with pytest.raises(ConfigError, match=f"--frames {frames}: .*multiple of 2, at most 256") as raised:
        qwen.model.shaped(ExportOptions(method="none", frames=frames))
    assert raised.value.fix == f"--frames {fixed}"
    profile = qwen.model.shaped(ExportOptions(method="none", frames=fixed)).profiles[-1]
    assert Profile.model_validate(profile.model_dump()).tiles == fixed // 2


def test_qwen2_5_sees_no_videos_here(qwens):
    with pytest.raises(ConfigError, match="--frames with a qwen2_5_vl model") as raised:
        qwens("qwen2_5_vl").model.shaped(ExportOptions(method="none", frames=4))
    assert raised.value.fix == "drop --frames"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 7, "method": "fastv", "settings": {"layer": 1}}, ["inside the decoder", "takes one image", "drop --frames"]),
        ({"method": "divprune@9,fastv@7", "settings": {"layer": 1}}, ["inside the decoder", "drop --frames"]),
        ({"keep": 2, "method": "divprune"}, ["profile video", "3 … 45", "in 3 tiles", "drop --frames"]),
        ({"keep": 16, "method": "divprune"}, ["--keep 16", "1 … 15"]),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_is_refused_by_name(tmp_path, qwen, options, words):
    resolution = qwen.kind.resolution(*CELLS)
    with pytest.raises(ConfigError) as raised:
        fico_export.export(qwen.folder, out=tmp_path / "out", frames=FRAMES, resolution=resolution, **options)
    assert all(word in f"{raised.value} {raised.value.fix}" for word in words), (
        f"{raised.value} {raised.value.fix}"
    )


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (fico_export.Video(NINE[:5]), ["5 frames", "takes 6", "--frames 4 or fewer"]),
        (fico_export.Video(NINE, fps=0), ["0 frames a second", "above 0"]),
        (fico_export.Video(NINE, fps=float("nan")), ["nan frames a second"]),
        (fico_export.Video(NINE, fps="two"), ["'two' frames a second"]),
    ],
)
def test_a_video_that_cannot_be_shown_is_refused(whole, video, words):
    with pytest.raises(InputError) as raised:
        whole.generate(QUESTION, video)
    assert all(word in f"{raised.value} {raised.value.fix}" for word in words), raised.value


def test_an_animation_of_too_many_frames_is_refused(whole, monkeypatch, tmp_path):
    NINE[0].save(tmp_path / "all.gif", save_all=True, append_images=NINE[1:])
    monkeypatch.setattr(video_source, "MAX_FRAMES", 8)
    with pytest.raises(InputError, match=r"all\.gif' has over .*over 8 frames"):
        whole.preprocess(fico_export.Video(tmp_path / "all.gif"))


def test_a_bundle_without_videos_says_how_to_have_them(make_bundle, qwen):
    bundle = make_bundle(qwen.folder, 7, method="tome", resolution=qwen.kind.resolution(*CELLS), verify=False)
    with fico_export.load(bundle) as vlm, pytest.raises(InputError, match="takes no video") as raised:
        vlm.generate(QUESTION, VIDEO)
    assert "--frames N" in raised.value.fix


def test_the_command_line_takes_a_video_and_its_frames_a_second(whole, tmp_path, capsys):
    NINE[0].save(tmp_path / "all.gif", save_all=True, append_images=NINE[1:], duration=100)
    asked = ["run", whole.folder, "--prompt", QUESTION, "--greedy", "--max-new-tokens", "4", "--json"]
    shown = [*asked, "--video", tmp_path / "all.gif"]
    said, later = (
        in_this_process(capsys, "fico", *shown, *fps).json for fps in ([], ["--video-fps", "0.01"])
    )

    video = fico_export.Video(tmp_path / "all.gif")
    assert said["token_ids"] == whole.generate(QUESTION, video, max_new_tokens=4, sampling=GREEDY).token_ids
    assert later["prompt_tokens"] > said["prompt_tokens"]
    in_this_process(capsys, "fico", *asked[:-1], "--video-fps", "2").refuses(
        "--video-fps is of --video", "add --video"
    )
