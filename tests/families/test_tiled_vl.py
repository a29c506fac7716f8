"""SmolVLM, Idefics3 and InternVL against transformers: pixels, prompts and answers, of images of any size."""

import numpy as np
import pytest
import torch
from anyres_checkpoints import picture
from exhaustive import exhaustive

import fico_export
from fico_export.runtime.inputs.preprocess import ImageProcessor
from fico_export.runtime.inputs.prompt import Message, PromptFormatter
from fico_export.runtime.sampling import GREEDY

QUESTION, MORE = "What is it?", "And which colour?"
# Wide, tall, square, and sides of a pixel.
SIZES = [(200, 150), (90, 261), (130, 131), (1, 57), (57, 1)]
# InternVL with the other decoder is what test_tiled_pruned.py has.
NAMES = ["smolvlm", "idefics3", exhaustive("internvl"), "internvl-qwen3"]


@pytest.fixture(scope="module", params=NAMES)
def each(request, tileds):
    return tileds(request.param)


@pytest.fixture(scope="module")
def whole(make_bundle, each):
    """All tokens, every grid, as the model was trained."""
    with fico_export.load(
        make_bundle(each.folder, method="none", verify=each.name == "internvl-qwen3")
    ) as vlm:
        yield vlm


def prompt(vlm, images):
    ids = vlm.formatter.encode([Message("user", QUESTION, len(images))])
    return vlm.layout.whole_ids(ids, [image.size for image in images])


def test_pixels_prompt_and_answer_are_those_of_transformers(whole, each):
    answers = set()
    for number, size in enumerate(SIZES):
        image = picture(*size, number)
        fed = each.theirs.inputs(([image], QUESTION))
        said = whole.generate(QUESTION, image, max_new_tokens=8, sampling=GREEDY)

        np.testing.assert_array_equal(whole.preprocess(image).values, each.theirs.pixels(image))
        assert prompt(whole, [image]) == fed["input_ids"][0].tolist()
        assert said.prompt_tokens == fed["input_ids"].shape[1]
        assert said.token_ids == each.theirs.answer(([image], QUESTION)), size
        answers.add(tuple(said.token_ids))
    assert len(answers) > 2  # the images make the difference


def test_two_images_of_different_grids_and_text_alone(whole, each):
    images = [picture(200, 150, 1), picture(90, 261, 2)]
    for shown in (images, []):
        said = whole.generate(QUESTION, shown, max_new_tokens=8, sampling=GREEDY)
        assert prompt(whole, shown) == each.theirs.inputs((shown, QUESTION))["input_ids"][0].tolist()
        assert said.token_ids == each.theirs.answer((shown, QUESTION))
    together = np.concatenate([whole.preprocess(image).values for image in images])
    np.testing.assert_array_equal(together, each.theirs.pixels(*images))


def test_further_turns_go_on_where_the_first_ended(whole, each):
    asked, chat = [], whole.chat()
    for text, shown in ((QUESTION, [picture(200, 150, 3)]), (MORE, []), ("And this?", [picture(50, 50, 4)])):
        said = chat.ask(text, shown, max_new_tokens=4, sampling=GREEDY)
        asked.append((shown, text))
        assert said.token_ids == each.theirs.answer(*asked, new_tokens=4), text
        asked.append(said.text)


def test_one_graph_of_one_tile_serves_every_grid(whole, each):
    profiles, kind = whole.manifest.profiles, each.kind

    assert {profile.graph for profile in profiles} == {"vision_encoder"}
    assert whole.manifest.graphs["vision_encoder"].shapes()["pixel_values"] == [1, 3, kind.side, kind.side]
    assert len(profiles) == (35 if kind.family == "internvl" else 2 * kind.most - 1)
    assert all(profile.visual_tokens == profile.tiles * kind.a_tile for profile in profiles)


# Odd edges, sides of a pixel, and sides beyond what transformers scales an image down to.
@pytest.mark.parametrize(
    "size",
    [(31, 30), (333, 100), (57, 1), (1, 150), (8, 9), (701, 693), exhaustive((5000, 41)), (41, 5000), exhaustive((100, 333))],
)  # fmt: skip
@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "internvl"])
def test_pixels_are_those_of_transformers(tileds, name, size):
    tiled = tileds(name)
    processor = ImageProcessor.from_config(tiled.model.files().preprocessor)
    image = picture(*size, 3)

    np.testing.assert_array_equal(tiled.layout().pixels(image, processor).values, tiled.theirs.pixels(image))


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "internvl"])
def test_the_prompt_is_the_processors_over_fifty_sizes(tileds, name):
    tiled, generator = tileds(name), np.random.default_rng(0)
    files, layout = tiled.model.files(), tiled.layout()
    formatter = PromptFormatter(files.tokenizer, files.chat_template, tiled.model.tokens)
    ids, grids = formatter.encode([Message("user", QUESTION, 1)]), set()

    for width, height in generator.integers(1, 500, (50, 2)).tolist():
        fed = tiled.theirs.inputs(([picture(width, height)], QUESTION))
        count = int((fed["input_ids"] == tiled.model.tokens.image_id).sum())
        grids.add(layout.profile((width, height)).name)

        assert layout.features((width, height)) == count
        assert layout.whole_ids(ids, [(width, height)]) == fed["input_ids"][0].tolist(), (width, height)
    assert len(grids) > 4


@pytest.mark.parametrize("name", ["smolvlm", "internvl-qwen3"])
def test_an_image_as_one_tile_is_what_transformers_makes_of_one(make_bundle, tileds, name):
    tiled = tileds(name)
    with fico_export.load(make_bundle(tiled.folder, method="none", profile="1", verify=False)) as vlm:
        for size in SIZES[:4]:
            image = picture(*size, 5)
            fed = tiled.theirs.inputs(([image], QUESTION), single=True)
            said = vlm.generate(QUESTION, image, max_new_tokens=8, sampling=GREEDY)

            np.testing.assert_array_equal(
                vlm.preprocess(image).values, tiled.theirs.pixels(image, single=True)
            )
            assert prompt(vlm, [image]) == fed["input_ids"][0].tolist()
            assert said.token_ids == tiled.theirs.answer(([image], QUESTION), single=True)


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "internvl"])
def test_features_of_tiles_are_those_of_transformers(tileds, name):
    tiled = tileds(name)
    pixels = tiled.theirs.pixels(picture(200, 150, 6))
    with torch.inference_mode():
        found, index = tiled.module("1")(torch.from_numpy(pixels))

    np.testing.assert_allclose(found, tiled.theirs.features(pixels), atol=2e-5)
    assert index.tolist() == [list(range(tiled.kind.a_tile))] * len(pixels)
