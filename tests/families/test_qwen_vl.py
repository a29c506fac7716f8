"""Qwen2.5-VL and Qwen3-VL against transformers: pixels, prompts, positions and answers, of images of any size."""

import numpy as np
import pytest
from anyres_checkpoints import picture

import fico_export
from fico_export.runtime.inputs.images import ImageFeatures
from fico_export.runtime.inputs.preprocess import ImageProcessor
from fico_export.runtime.inputs.prompt import Message, PromptFormatter
from fico_export.runtime.sampling import GREEDY

QUESTION, MORE = "What is it?", "And which colour?"
# Square, wide and tall, in cells: of Qwen2.5-VL's windows of 2×2 the first has four whole ones, the others have ragged edges.
CELLS = [(4, 4), (3, 5), (5, 3)]
# By how many pixels an image may be off, for smart resizing to give just these.
OFF = [(0, 0), (6, -5), (-7, 4)]


@pytest.fixture(scope="module")
def whole(make_bundle, qwen):
    """All tokens, three resolutions."""
    resolutions = tuple(qwen.kind.resolution(*cells) for cells in CELLS)
    with fico_export.load(make_bundle(qwen.folder, method="none", resolution=resolutions)) as vlm:
        yield vlm


@pytest.fixture
def images(qwen):
    return [
        picture(*qwen.kind.size(*cells, off), i)
        for i, (cells, off) in enumerate(zip(CELLS, OFF, strict=True))
    ]


def test_pixels_prompt_and_answer_are_those_of_transformers(whole, qwen, images):
    answers = []
    for image in images:
        fed, pixels = qwen.theirs.inputs(([image], QUESTION)), whole.preprocess(image)
        said = whole.generate(QUESTION, image, max_new_tokens=8, sampling=GREEDY)

        np.testing.assert_array_equal(pixels.values[0], qwen.theirs.pixels(image))
        assert prompt(whole, [image]) == fed["input_ids"][0].tolist()
        assert said.prompt_tokens == fed["input_ids"].shape[1]
        assert said.token_ids == qwen.theirs.answer(([image], QUESTION))
        answers.append(tuple(said.token_ids))
    assert len(set(answers)) == len(images)  # the images make the difference


def prompt(vlm, images):
    ids = vlm.formatter.encode([Message("user", QUESTION, len(images))])
    return vlm.layout.whole_ids(ids, [image.size for image in images])


def test_two_images_and_text_alone(whole, qwen, images):
    for shown in (images[:2], images[1:], []):
        said = whole.generate(QUESTION, shown, max_new_tokens=8, sampling=GREEDY)
        assert prompt(whole, shown) == qwen.theirs.inputs((shown, QUESTION))["input_ids"][0].tolist()
        assert said.token_ids == qwen.theirs.answer((shown, QUESTION))


def test_further_turns_go_on_after_the_longer_side_of_an_image(whole, qwen, images):
    asked, chat = [], whole.chat()
    for text, shown in ((QUESTION, images[1:2]), (MORE, []), ("And this?", images[2:]), ("How many?", [])):
        said = chat.ask(text, shown, max_new_tokens=4, sampling=GREEDY)
        asked.append((shown, text))
        assert said.token_ids == qwen.theirs.answer(*asked, new_tokens=4), text
        asked.append(said.text)
    assert said.cached_tokens > said.prompt_tokens - 40  # no image was computed again


def test_each_resolution_has_a_graph_and_all_have_one_file_of_weights(whole, qwen):
    names = [qwen.kind.resolution(*cells) for cells in CELLS]
    manifest = whole.manifest

    assert [profile.name for profile in manifest.profiles] == names
    assert [profile.graph for profile in manifest.profiles] == [
        "vision_encoder", *(f"vision_encoder_{name}" for name in names[1:]),
    ]  # fmt: skip
    for profile, (rows, columns) in zip(manifest.profiles, CELLS, strict=True):
        shapes = manifest.graphs[profile.graph].shapes()
        assert shapes["pixel_values"] == [1, 3, rows * qwen.kind.cell, columns * qwen.kind.cell]
        assert profile.visual_tokens == rows * columns
        if qwen.kind.planes:
            assert shapes["deepstack_features"] == [1, qwen.kind.planes, rows * columns, 64]
    assert ("deepstack_features" in shapes) == bool(qwen.kind.planes)
    stored = sum(
        file.stat().st_size for file in whole.folder.rglob("*") if file.is_file() and file.suffix != ".onnx"
    )
    assert stored < 1.5 * (qwen.folder / "model.safetensors").stat().st_size


def test_prompt_positions_and_count_are_those_of_transformers_over_fifty_sizes(qwen):
    files, generator = qwen.model.files(), np.random.default_rng(0)
    formatter = PromptFormatter(files.tokenizer, files.chat_template, qwen.model.tokens)
    ids = formatter.encode([Message("user", QUESTION, 1)])

    for width, height in generator.integers(10, 900, (50, 2)).tolist():
        image = picture(width, height)
        fed = qwen.theirs.inputs(([image], QUESTION))
        layout = qwen.layout(resolution_of(qwen, fed["image_grid_thw"][0].tolist()))
        count = int((fed["input_ids"] == qwen.model.tokens.image_id).sum())
        block = layout.place(image.size, np.arange(count))
        shown = ImageFeatures(np.zeros((count, 1), np.float32), np.arange(count), "", image.size, block)
        laid_out = layout.lay_out(ids, [shown])
        expected = qwen.theirs.positions(fed)

        assert layout.rows(image.size) == layout.features(image.size) == count
        assert layout.whole_ids(ids, [image.size]) == fed["input_ids"][0].tolist()
        np.testing.assert_array_equal(laid_out.positions, expected)
        assert laid_out.next_position == expected.max() + 1


def resolution_of(qwen, grid):
    patch = qwen.kind.cell // 2
    return f"{grid[1] * patch}x{grid[2] * patch}"


# Odd edges, sides of a pixel, and areas under and over the bounds of the processor.
@pytest.mark.parametrize(
    "size", [(200, 150), (90, 261), (31, 30), (333, 100), (57, 1), (1, 150), (199, 1), (8, 9), (701, 693)]
)
def test_pixels_are_those_of_transformers(qwen, size):
    processor = ImageProcessor.from_config(qwen.model.files().preprocessor)
    image = picture(*size, 3)
    theirs = qwen.theirs.pixels(image)
    layout = qwen.layout("{}x{}".format(*theirs.shape[1:]))

    np.testing.assert_array_equal(layout.pixels(image, processor).values[0], theirs)


def test_an_image_takes_the_resolution_nearest_to_its_shape(qwen):
    layout = qwen.layout(*(qwen.kind.resolution(*cells) for cells in [*CELLS, (8, 8)]))

    for size, cells in {
        (900, 500): (3, 5),
        (50, 90): (5, 3),
        (100, 101): (4, 4),
        (4000, 4000): (8, 8),
        (9, 9): (4, 4),
    }.items():
        assert layout.profile(size).token_grid == cells
