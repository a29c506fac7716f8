"""LLaVA-OneVision against transformers: one image in tiles, several as one tile each, many tiles resampled."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from anyres_checkpoints import picture, rename
from onevision_checkpoints import SIDE, Theirs, write_onevision

import fico_export
from fico_export import models
from fico_export.errors import CheckpointError, ConfigError, FicoError, InputError
from fico_export.options import ExportOptions
from fico_export.runtime.inputs.layout import Layout
from fico_export.runtime.inputs.layouts import anyres
from fico_export.runtime.inputs.layouts.base import NEWLINE
from fico_export.runtime.inputs.positions import as_input
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.sampling import GREEDY

QUESTION, MORE = "What is it?", "And this?"
FRAMES = 4  # of nine: 0, 2, 4 and 6
NINE = [picture(90, 60, i) for i in range(9)]
# One tile, odd sides, sides of a pixel, and grids so large that they are resampled: 5×6, 6×6, 6×2.
SIZES = [(200, 150), (70, 70), (31, 30), (260, 90), (1, 57), (57, 1), (420, 333), (400, 401), (130, 420)]


@pytest.fixture(scope="module")
def checkpoint(shared):
    return shared("onevision", write_onevision)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return Theirs(checkpoint)


@pytest.fixture(scope="module")
def whole(make_bundle, checkpoint):
    """All tokens, every grid and videos, as the model was trained."""
    with fico_export.load(make_bundle(checkpoint, method="none", frames=FRAMES)) as vlm:
        yield vlm


@pytest.mark.parametrize(
    "sizes", [*([size] for size in SIZES), [(200, 150), (1, 57)], [(70, 70), (9, 99), (300, 301)]]
)
def test_pixels_prompt_and_answer_are_those_of_transformers(whole, theirs, sizes):
    images = [picture(*size, i) for i, size in enumerate(sizes)]
    fed = theirs.inputs((images, QUESTION))
    pixels = [whole.preprocess(image, among=len(images)).values for image in images]
    said = whole.generate(QUESTION, images, max_new_tokens=8, sampling=GREEDY)

    for ours, those in zip(pixels, fed["pixel_values"].numpy(), strict=True):
        np.testing.assert_array_equal(ours, those)
    assert prompt(whole, sizes) == fed["input_ids"][0].tolist()
    assert said.prompt_tokens == fed["input_ids"].shape[1]
    assert said.token_ids == theirs.answer((images, QUESTION))


def prompt(vlm, sizes):
    return vlm.layout.whole_ids(vlm.formatter.encode([Message("user", QUESTION, len(sizes))]), sizes)


def test_a_second_image_in_a_later_turn_leaves_the_first_without_tiles_too(whole, theirs):
    one, other, chat = picture(200, 150, 1), picture(90, 260, 2), whole.chat()
    asked = [([one], QUESTION)]

    assert whole.generate(QUESTION, sampling=GREEDY, max_new_tokens=8).token_ids == theirs.answer(QUESTION)
    for text, images in ((QUESTION, [one]), (MORE, []), ("Which colour?", [other]), ("How many?", [])):
        said = chat.ask(text, images, max_new_tokens=4, sampling=GREEDY)
        asked = asked if text == QUESTION else [*asked, (images, text)]
        assert said.token_ids == theirs.answer(*asked, new_tokens=4), text
        asked.append(said.text)
    assert [len(image.features) for image in chat.images] == [25, 25]
    assert said.cached_tokens > said.prompt_tokens - 30  # the last turn computed its own tokens alone


def test_images_that_were_encoded_alone_are_encoded_again_among_others_and_not_the_other_way_round(
    whole, theirs
):
    images = [picture(200, 150, 1), picture(90, 260, 2)]
    alone = [whole.encode_image(image) for image in images]
    among = [whole.encode_image(image, among=2) for image in images]

    for given in (alone, among, [alone[0], images[1]]):
        said = whole.generate(QUESTION, given, max_new_tokens=8, sampling=GREEDY)
        assert said.token_ids == theirs.answer((images, QUESTION))
    with pytest.raises(InputError, match="stands alone in this prompt") as raised:
        whole.generate(QUESTION, among[0])
    assert "encode_image(image)" in raised.value.fix


def test_a_video_alone_and_with_an_image_is_answered_as_by_transformers(whole, theirs):
    image, video = picture(200, 150), fico_export.Video(NINE)

    for images in ([], [image]):
        said = whole.generate(QUESTION, [video, *images], max_new_tokens=8, sampling=GREEDY)
        assert said.token_ids == theirs.answer((images, QUESTION), video=NINE[:8:2])
    assert len(whole.encode_image(video).block.ids) == FRAMES * 9 + 1
    chat = whole.chat()
    first = chat.ask(QUESTION, video, max_new_tokens=4, sampling=GREEDY)
    second = chat.ask(MORE, image, max_new_tokens=4, sampling=GREEDY)
    assert second.cached_tokens >= first.prompt_tokens - 1  # the video stands as it stood
    assert second.visual_tokens == len(whole.encode_image(image).features) + FRAMES * 9


def test_a_video_is_a_folder_an_animation_or_images(whole, tmp_path):
    for i, frame in enumerate(NINE):
        frame.save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    NINE[0].save(tmp_path.parent / "all.png", save_all=True, append_images=NINE[1:])
    expected = whole.preprocess(fico_export.Video(NINE)).values

    for source in (tmp_path, str(tmp_path.parent / "all.png"), (tmp_path.parent / "all.png").read_bytes()):
        np.testing.assert_array_equal(whole.preprocess(fico_export.Video(source)).values, expected)
    NINE[0].save(tmp_path / "all.gif", save_all=True, append_images=NINE[1:], duration=100)
    assert whole.preprocess(fico_export.Video(tmp_path / "all.gif")).values.shape == (FRAMES, 3, SIDE, SIDE)


def test_a_video_file_is_read_by_pyav(whole, tmp_path):
    av = pytest.importorskip("av", reason="pip install '.[video]'")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 96, 64, "yuv420p", 4_000_000
        for frame in NINE:
            container.mux(stream.encode(av.VideoFrame.from_image(frame.resize((96, 64)))))
        container.mux(stream.encode())
    read = whole.preprocess(fico_export.Video(tmp_path / "clip.mp4")).values

    near = whole.preprocess(fico_export.Video([frame.resize((96, 64)) for frame in NINE])).values
    assert np.abs(read - near).mean() < 0.1
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"broken\.mp4' is no video, or damaged"):
        whole.preprocess(fico_export.Video(tmp_path / "broken.mp4"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([NINE[0]] * 3, ["3 frames", "takes 4", "--frames 3"]),
        ("clip.mp4", ["takes PyAV", ".[video]", "ffmpeg -i clip.mp4"]),
        (".", ["has no images"]),
        ("clip.gif", ["no file 'clip.gif'"]),
    ],
)
def test_a_video_that_cannot_be_read_is_refused(whole, monkeypatch, tmp_path, source, words):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(FicoError) as raised:
        whole.generate(QUESTION, fico_export.Video(source))
    assert all(word in f"{raised.value} {raised.value.fix}" for word in words), raised.value


def test_the_layout_is_the_processors_over_fifty_sizes(whole, theirs):
    generator = np.random.default_rng(0)

    for width, height in generator.integers(1, 900, (50, 2)).tolist():
        counted = theirs.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        count = counted["num_image_tokens"][0]
        assert len(whole.layout.whole((width, height)).ids) == count, (width, height)
        assert whole.layout.rows((width, height)) == count


def test_one_graph_of_one_tile_serves_36_grids_and_one_of_several_images(whole):
    manifest = whole.manifest
    *images, video = manifest.profiles

    assert len(images) == 37
    assert {profile.graph for profile in images} == {"vision_encoder"}
    assert (video.graph, video.runs, video.token_grid) == ("vision_encoder_video", FRAMES, (3, 3))
    assert manifest.graphs["vision_encoder"].shapes()["pixel_values"] == [1, 3, SIDE, SIDE]
    assert manifest.layout.numbers == {"unpad": 1, "newlines": 2, "most": 9, "single": 1}


@pytest.mark.parametrize(("outputs", "inputs"), [(14, 27), (99, 162), (7, 7), (11, 30), (1, 2), (104, 117)])
def test_weights_along_an_axis_are_those_of_torch(outputs, inputs):
    x = torch.randn(1, 3, inputs, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(x, outputs, mode="linear")[0].numpy()

    np.testing.assert_allclose(x[0].numpy() @ anyres.bilinear(outputs, inputs).T, expected, atol=2e-6)


def test_the_public_models_sizes_are_known_from_their_config(theirs):
    """Counts as transformers' processor gives them; and what is made of the features of a large grid."""
    raw = {
        "model_type": "llava_onevision",
        "vision_feature_layer": -1,
        "text_config": {"model_type": "qwen2"},
    }
    found = models.known_families()["llava_onevision"].describe(raw)
    found = found.shaped(ExportOptions(method="none"))
    layout = Layout(found.layout, found.profiles, "original", 7)

    for size, rows in {(384, 384): 1485, (640, 480): 2929, (1024, 768): 4725, (1920, 1080): 7269}.items():
        assert len(layout.whole(size).ids) == rows
    assert len(layout.among(2).whole((1920, 1080)).ids) == 730
    features = torch.randn(16 * 729, 4, generator=torch.Generator().manual_seed(0))
    shown, _ = layout.shown((1920, 1080), features.numpy(), np.arange(16 * 729))
    grid = features[729:].view(3, 5, 27, 27, 4).permute(4, 0, 2, 1, 3).reshape(1, 4, 81, 135)[:, :, 3:78]
    ratio = (75 * 135 / (9 * 729)) ** 0.5
    smaller = torch.nn.functional.interpolate(grid, [int(75 // ratio), int(135 // ratio)], mode="bilinear")
    np.testing.assert_allclose(shown[729:], smaller[0].flatten(1).T.numpy(), atol=3e-6)
    np.testing.assert_array_equal(shown[:729], features[:729].numpy())


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_logits_of_what_is_kept_are_those_of_transformers_at_the_places_that_it_had(
    make_bundle, checkpoint, theirs, positions
):
    """`g-prune` keeps features as they are. An image alone has the usual grid, and of several each K tokens."""
    with fico_export.load(
        make_bundle(
            checkpoint,
            20,
            method="g-prune",
            newlines="rows",
            unpad=True,
            positions=positions,
            frames=4,
            verify=False,
        )
    ) as vlm:
        assert [profile.name for profile in vlm.manifest.profiles] == ["2x2", "1", "video"]
        video = vlm.encode_image(fico_export.Video(NINE))
        assert video.block.visual.tolist() == [*range(20), NEWLINE]
        at = list(range(21)) if positions == "compact" else [*video.keep_index.tolist(), 36]
        assert video.offsets.tolist() == [at]
        np.testing.assert_allclose(video.features, theirs.video(NINE[:8:2])[video.keep_index], atol=2e-5)
        for images in ([picture(140, 130)], [picture(200, 150, 1), picture(90, 260, 2)]):
            encoded = [vlm.encode_image(image, among=len(images)) for image in images]
            assert [len(image.features) for image in encoded] == [20] * len(images)
            ids = vlm.formatter.encode([Message("user", QUESTION, len(images))])
            laid_out = vlm.layout.lay_out(ids, encoded)
            embeds, places, _ = laid_out.rows(vlm.embed, encoded)
            tokens = vlm.generate(QUESTION, images, max_new_tokens=1, sampling=GREEDY).token_ids
            expected, at = left_of(theirs, vlm, images, encoded)

            np.testing.assert_allclose(embeds, expected.numpy(), atol=2e-5)
            assert places.tolist() == [list(range(len(at))) if positions == "compact" else at]
            with torch.no_grad():
                logits = theirs.model(
                    inputs_embeds=expected[None],
                    position_ids=torch.tensor(as_input(places)),
                    attention_mask=torch.ones(1, len(at), dtype=torch.int64),
                ).logits[0, -1]
            assert tokens == [int(logits.argmax())]


def left_of(theirs, vlm, images, encoded):
    """Of transformers' own packed rows those that are left, with the text [S, C], and where they stood."""
    fed = theirs.inputs((images, QUESTION))
    ids = fed["input_ids"][0]
    with torch.no_grad():
        made = theirs.model.get_image_features(
            fed["pixel_values"], fed["image_sizes"], batch_num_images=fed["batch_num_images"]
        )
        rows = theirs.model.get_input_embeddings()(ids)
    rows[ids == vlm.manifest.tokens.image_id] = torch.cat(list(made.pooler_output))
    at = np.flatnonzero(ids.numpy() == vlm.manifest.tokens.image_id)
    stays, start = (ids != vlm.manifest.tokens.image_id).numpy(), 0
    for image, features in zip(encoded, made.pooler_output, strict=True):
        visual = vlm.layout.among(len(images)).whole(image.size).visual
        stays[at[start : start + len(features)]] = rows_left(
            visual, set(image.keep_index.tolist()), len(images)
        )
        start += len(features)
    return rows[stays], np.flatnonzero(stays).tolist()


def rows_left(visual, kept, images):
    """By the rule's words: a row's newline stands where a token of it does; several images have one row each."""
    left, of_row = [], False
    for token in visual.tolist():
        left.append(of_row if token == NEWLINE else token in kept)
        of_row = token != NEWLINE and (of_row or (left[-1] and (token >= 25 or images > 1)))
    return np.array(left)


def test_a_budget_larger_than_a_tile_is_for_images_alone(make_bundle, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"the profile 1 cannot .*--keep 40 is outside 1 … 25") as raised:
        fico_export.export(checkpoint, 40, out=tmp_path / "out", method="g-prune")
    assert raised.value.fix.endswith("--profile 2x2")
    bundle = make_bundle(checkpoint, 40, method="g-prune", profile="2x2")
    with fico_export.load(bundle) as vlm:
        vlm.generate(QUESTION, picture(200, 150), max_new_tokens=1)
        with pytest.raises(InputError, match="takes no video"):
            vlm.generate(QUESTION, fico_export.Video(NINE))
        with pytest.raises(InputError, match=r"2 images in a prompt: .* this bundle is for 2x2") as raised:
            vlm.generate(QUESTION, [picture(200, 150), picture(9, 9)])
    assert "--profile 1" in raised.value.fix


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"method": "fastv", "keep": 20, "settings": {"layer": 1}}, ["2x2"]),
        ({"method": "divprune", "keep": 20, "tiling": "joint"}, ["2x2", "1"]),
        ({"method": "divprune", "keep": 20, "tiling": "split", "base_keep": 10}, ["2x2", "1"]),
        ({"method": "divprune", "keep": 20, "profile": ("1",)}, ["1"]),
        ({"method": "divprune", "keep": 20, "profile": ("1", "6x6", "1x1")}, ["1x1", "6x6", "1"]),
    ],
)
def test_which_profiles_a_request_has(checkpoint, options, names):
    model = models.load(checkpoint).shaped(ExportOptions(**options))
    plan = model.plan(options["method"], options["keep"], options.get("settings", {}))

    assert [profile.name for profile in model.profiles] == names
    if names[-1] == "1":
        assert [group.tiles for group in model.plan_for(plan, model.profiles[-1]).groups] == [1]


def test_a_bundle_of_one_tile_shows_an_image_alone_so_too(checkpoint, theirs):
    model = models.load(checkpoint).shaped(ExportOptions(method="divprune", keep=20, profile=("1",)))
    layout = Layout(model.layout, model.profiles, "original", 7)

    assert layout.profile((200, 150)).name == "1"
    assert layout.among(2).profile((200, 150)).name == "1"


@pytest.mark.parametrize("layout", ["as saved by transformers 5", "in memory"])
def test_keys_of_every_layout_are_read(tmp_path, checkpoint, layout):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    rename(folder, as_saved if layout.startswith("as saved") else in_memory)
    model, known = models.load(folder), models.load(checkpoint)

    newline = model.checkpoint.load("image_newline")
    np.testing.assert_array_equal(newline.numpy(), known.checkpoint.load("image_newline").numpy())
    assert model.checkpoint.tensors.keys() == known.checkpoint.tensors.keys()


def as_saved(key):
    return key.replace("vision_tower.vision_model.", "vision_tower.")


def in_memory(key):
    key = as_saved(key).replace("language_model.model.", "language_model.")
    return key if key.startswith(("language_model.lm_head", "lm_head")) else f"model.{key}"


def test_a_missing_newline_is_named(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    rename(folder, lambda key: key.replace("image_newline", "some_other"))

    with pytest.raises(CheckpointError, match="image_newline"):
        models.load(folder)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config", {"vision_aspect_ratio": "anyres"}, ["vision_aspect_ratio 'anyres'", "anyres_max_9"]),
        ("config", {"vision_aspect_ratio": "anyres_max_0"}, ["vision_aspect_ratio 'anyres_max_0'"]),
        ("config", {"vision_aspect_ratio": "pad"}, ["vision_aspect_ratio 'pad'", "anyres_max_N"]),
        ("config", {"vision_aspect_ratio": 9}, ["vision_aspect_ratio"]),
        ("config", {"image_grid_pinpoints": [[SIDE, SIDE + 1]]}, ["image_grid_pinpoints", "multiples", "70"]),
        ("config", {"vision_feature_select_strategy": "default"}, ["'default'", "first patch", "full"]),
        ("processor_config", {"vision_aspect_ratio": "anyres_max_4"}, ["anyres_max_4", "anyres_max_9", "one checkpoint"]),
        ("preprocessor_config", {"image_grid_pinpoints": [[SIDE, SIDE]]}, ["not those of config.json"]),
    ],
)  # fmt: skip
def test_files_that_cannot_be_are_refused_by_name(tmp_path, checkpoint, file, change, words):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    path = folder / f"{file}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(CheckpointError) as raised:
        models.load(folder).files()
    assert all(word in f"{raised.value} {raised.value.fix}" for word in words), raised.value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 4}, ["4", "5 … 125", "tiles"]),
        ({"keep": 20, "profile": ["7x1"]}, ["7x1", "6x6, all"]),
        ({"keep": 20, "method": "g-prune", "profile": ["6x6", "1"]}, ["37 … 925", "37 tiles"]),
        ({"keep": 20, "method": "fastv", "settings": {"layer": 1}, "profile": ["2x2", "1"]}, ["one --profile"]),
        ({"keep": 20, "method": "fastv", "settings": {"layer": 1}, "frames": 4}, ["no --frames"]),
        ({"keep": 20, "method": "visionzip", "frames": 4}, ["profile video", "visionzip", "drop --frames"]),
        ({"keep": 60, "method": "divprune", "frames": 4, "profile": ["2x2"]}, ["profile video", "4 … 36"]),
        ({"keep": 20, "frames": 1}, ["--frames 1", "2 … 256"]),
        ({"keep": 20, "method": "cls-topk", "tiling": "joint"}, ["--tiling joint", "cls-topk"]),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_is_refused_by_name(tmp_path, checkpoint, options, words):
    with pytest.raises(ConfigError) as raised:
        fico_export.export(checkpoint, out=tmp_path / "out", **options)
    assert all(word in f"{raised.value} {raised.value.fix}" for word in words), (
        f"{raised.value} {raised.value.fix}"
    )
