"""LLaVA-NeXT against transformers: pixels, prompts, answers, and what is left of an image at the places that it had."""

import json
import shutil

import numpy as np
import pytest
import torch
from anyres_checkpoints import SIDE, picture, rename

import fico_export
from fico_export import models
from fico_export.bundle.manifest import Manifest
from fico_export.errors import CheckpointError, ConfigError
from fico_export.runtime.inputs.layouts.base import NEWLINE
from fico_export.runtime.inputs.positions import as_input
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.sampling import GREEDY

QUESTION = "What is it?"
# Each of the five grids, odd sides, sides of a pixel, and a hair beside a whole number of rows.
SIZES = [
    (200, 150),
    (90, 260),
    (260, 90),
    (56, 56),
    (31, 30),
    (112, 112),
    (333, 100),
    (1, 57),
    (57, 1),
    (113, 111),
]


@pytest.fixture(scope="module")
def whole(make_bundle, checkpoint):
    """All tokens, every grid, as the model was trained."""
    with fico_export.load(make_bundle(checkpoint, method="none")) as vlm:
        yield vlm


@pytest.mark.parametrize("size", SIZES)
def test_pixels_prompt_and_answer_are_those_of_transformers(whole, theirs, size):
    image = picture(*size)
    fed, pixels = theirs.inputs([image], QUESTION), whole.preprocess(image)

    np.testing.assert_array_equal(pixels.values, fed["pixel_values"][0].numpy())
    assert whole_ids(whole, [size]) == fed["input_ids"][0].tolist()
    assert whole.layout.profile(size).tiles == len(pixels.values)
    assert answer(whole, [image]) == theirs.answer([image], QUESTION)


def test_two_images_text_alone_and_a_further_turn(whole, theirs):
    two = [picture(200, 150, 1), picture(90, 260, 2)]

    assert answer(whole, two) == theirs.answer(two, QUESTION)
    assert answer(whole, []) == theirs.answer([], QUESTION)
    chat = whole.chat()
    first = chat.ask(QUESTION, two[0], max_new_tokens=4, sampling=GREEDY)
    second = chat.ask("And which colour?", max_new_tokens=8, sampling=GREEDY)
    assert second.cached_tokens > first.prompt_tokens - 4
    assert second.token_ids == theirs.answer(two[:1], QUESTION, first.text, "And which colour?")


def test_the_layout_is_the_processors_over_fifty_sizes(whole, theirs):
    generator = np.random.default_rng(0)

    for width, height in generator.integers(1, 900, (50, 2)).tolist():
        count = theirs.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])[
            "num_image_tokens"
        ][0]
        assert len(whole.layout.whole((width, height)).ids) == count, (width, height)
        assert whole.layout.rows((width, height)) == count


def test_one_graph_of_one_tile_serves_every_grid(whole):
    manifest = whole.manifest

    assert [profile.name for profile in manifest.profiles] == ["2x2", "1x2", "2x1", "3x1", "1x3"]
    assert {profile.graph for profile in manifest.profiles} == {"vision_encoder"}
    assert manifest.graphs["vision_encoder"].shapes()["pixel_values"] == [1, 3, SIDE, SIDE]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("newlines", ["drop", "rows", "all"])
def test_logits_of_what_is_kept_are_those_of_transformers_at_the_places_that_it_had(
    make_bundle, checkpoint, theirs, whole, positions, newlines
):
    """`uniform` keeps what the size alone decides: the graph is one for all of these."""
    bundle = make_bundle(
        checkpoint, 20, method="g-prune", unpad=True, newlines=newlines, positions=positions, verify=False
    )
    image = picture(200, 150, 3)
    with fico_export.load(bundle) as vlm:
        kept = vlm.encode_image(image)
        ids = vlm.formatter.encode([Message("user", QUESTION, 1)])
        laid_out = vlm.layout.lay_out(ids, [kept])
        embeds, places, _ = laid_out.rows(vlm.embed, [kept])
        tokens = answer(vlm, [image], 1)

    # From transformers' own packed rows: which of them are left, and where they stood.
    fed = theirs.inputs([image], QUESTION)
    with torch.no_grad():
        packed = theirs.model.get_image_features(fed["pixel_values"], fed["image_sizes"]).pooler_output[0]
    block = whole.layout.whole(image.size)
    rows = rows_left(block.visual, set(kept.keep_index.tolist()), newlines)
    start = fed["input_ids"][0].tolist().index(vlm.manifest.tokens.image_id)
    text = theirs.model.get_input_embeddings()(fed["input_ids"])[0].detach()
    expected = torch.cat([text[:start], packed[rows], text[start + len(packed) :]])
    at = [*range(start), *(start + rows), *range(start + len(packed), len(text))]
    at = list(range(len(at))) if positions == "compact" else at

    assert len(kept.features) == 20
    np.testing.assert_allclose(embeds, expected.numpy(), atol=2e-5)
    assert places.tolist() == [at]
    with torch.no_grad():
        logits = theirs.model(
            inputs_embeds=expected[None],
            position_ids=torch.tensor(as_input(np.array([at]))),
            attention_mask=torch.ones(1, len(at), dtype=torch.int64),
        ).logits[0, -1]
    assert tokens == [int(logits.argmax())]


def rows_left(visual, kept, newlines):
    """By the rule's words, row by row: base tokens, then rows of the grid, each with its newline."""
    left, of_row = [], []
    for row, token in enumerate(visual.tolist()):
        if token != NEWLINE:
            if token in kept:
                left.append(row)
                of_row += [row] if token >= 16 else []
            continue
        if newlines == "all" or (newlines == "rows" and of_row):
            left.append(row)
        of_row = []
    return np.array(left)


@pytest.mark.parametrize("layout", ["as saved by transformers 5", "in memory"])
def test_keys_of_every_layout_are_read(tmp_path, checkpoint, whole, layout):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    rename(folder, as_saved if layout.startswith("as saved") else in_memory)
    model = models.load(folder)

    np.testing.assert_array_equal(
        model.checkpoint.load("image_newline").numpy(),
        models.load(checkpoint).checkpoint.load("image_newline").numpy(),
    )
    assert model.checkpoint.tensors.keys() == models.load(checkpoint).checkpoint.tensors.keys()


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
    ("change", "words"),
    [
        ({"image_grid_pinpoints": [[SIDE, SIDE + 1]]}, ["image_grid_pinpoints", "multiples", "56"]),
        ({"image_grid_pinpoints": [[SIDE]]}, ["image_grid_pinpoints", "pairs"]),
        ({"image_grid_pinpoints": [[56, 112], [56, 112]]}, ["image_grid_pinpoints", "once"]),
        ({"image_grid_pinpoints": 7}, ["image_grid_pinpoints", "pairs"]),
        ({"vision_feature_select_strategy": "full"}, ["CLS", "default"]),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_name(tmp_path, checkpoint, change, words):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError) as raised:
        models.load(folder)
    assert all(word in f"{raised.value} {raised.value.fix}" for word in words), raised.value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 4}, ["4", "5 … 80", "tiles"]),
        ({"keep": 20, "profile": ["2x3"]}, ["2x3", "1x2, 1x3, 2x1, 2x2, 3x1, all"]),
        ({"keep": 20, "profile": ["all", "2x3"]}, ["2x3", "1x2, 1x3, 2x1, 2x2, 3x1, all"]),
        ({"keep": 20, "method": "cls-topk", "tiling": "joint"}, ["--tiling joint", "cls-topk"]),
        ({"keep": 20, "method": "visionzip", "unpad": True}, ["--unpad", "visionzip", "g-prune"]),
        ({"keep": 20, "base_keep": 17}, ["--base-keep 17"]),
        ({"keep": 60, "base_keep": 17}, ["17", "16 tokens of a tile"]),
        ({"method": "cls-topk@40,divprune@20", "unpad": True}, ["--unpad", "one method"]),
        ({"method": "none", "tiling": "joint"}, ["--tiling joint", "none"]),
        (
            {"keep": 20, "method": "fastv", "settings": {"layer": 1}, "profile": ["all"]},
            ["fastv", "one --profile"],
        ),
        (
            {"keep": 20, "method": "fastv", "settings": {"layer": 1}, "newlines": "rows"},
            ["fastv", "--newlines all"],
        ),
        (
            {"keep": 20, "method": "fastv", "settings": {"layer": 1}, "tiling": "per-tile", "unpad": True},
            ["fastv", "--unpad"],
        ),
        ({"keep": 20, "method": "random", "tiling": "split"}, ["--tiling split", "random"]),
    ],
)
def test_a_request_that_cannot_be_is_refused_by_name(tmp_path, checkpoint, options, words):
    with pytest.raises((ConfigError, CheckpointError)) as raised:
        fico_export.export(checkpoint, out=tmp_path / "out", **options)
    assert all(word in f"{raised.value} {raised.value.fix}" for word in words), (
        f"{raised.value} {raised.value.fix}"
    )
    assert not (tmp_path / "out").exists()


def test_options_of_tiles_are_refused_for_a_model_that_sees_one_square(tmp_path, tiny_checkpoint):
    for options in (
        {"profile": "2x2"},
        {"tiling": "joint"},
        {"unpad": True},
        {"newlines": "all"},
        {"base_keep": 3},
    ):
        with pytest.raises(ConfigError, match="offers no such choice"):
            fico_export.export(tiny_checkpoint, 16, out=tmp_path / "out", **options)


def test_another_processors_pinpoints_are_refused(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_grid_pinpoints": [[56, 112]]}))

    with pytest.raises(CheckpointError, match=r"not those of config\.json"):
        fico_export.export(folder, 20, out=tmp_path / "out")


def test_a_damaged_newline_is_refused(tmp_path, whole):
    folder = shutil.copytree(whole.folder, tmp_path / "bundle")
    content = bytearray((folder / "image_newline.npy").read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    (folder / "image_newline.npy").write_bytes(content)

    with pytest.raises(fico_export.errors.BundleError, match=r"image_newline\.npy"):
        fico_export.load(folder)
    assert Manifest.load(folder).layout.numbers == {"unpad": 1, "newlines": 2}


def whole_ids(vlm, sizes):
    ids = vlm.formatter.encode([Message("user", QUESTION, len(sizes))])
    return vlm.layout.whole_ids(ids, sizes)


def answer(vlm, images, new_tokens=8):
    return vlm.generate(QUESTION, images, max_new_tokens=new_tokens, sampling=GREEDY).token_ids
