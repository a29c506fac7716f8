"""Checkpoints with a SigLIP tower: pixels and greedy answers are transformers', from every layout of checkpoint."""

import itertools

import numpy as np
import pytest
import skimage.data
from checkpoints import to_public_layout, write_siglip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_greedy import NEW_TOKENS, Reference
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import fico_export
from fico_export.errors import ConfigError
from fico_export.runtime.inputs.preprocess import ImageProcessor

pytestmark = pytest.mark.slow

SIDE = {"height": 118, "width": 118}
PUBLIC = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": SIDE,
}
SILENT = {"image_processor_type": "SiglipImageProcessor"}


@pytest.fixture(scope="module", params=["public layout", "saved by transformers 5"])
def pair(request, tmp_path_factory):
    """A loaded bundle that keeps all tokens, and its reference."""
    folder = write_siglip(tmp_path_factory.mktemp("siglip") / "checkpoint", seed=4)
    if request.param == "public layout":
        to_public_layout(folder)
    return fico_export.load(fico_export.export(folder, out=folder.parent / "bundle")), Reference(folder)


def test_one_picture(pair, photographs):
    vlm, reference = pair
    answers = set()
    for picture in photographs:
        answer = vlm.generate("What is in this picture?", [picture], max_new_tokens=NEW_TOKENS)

        assert answer.token_ids == reference.generate([("user", "What is in this picture?", [picture])])
        assert answer.visual_tokens == 64
        answers.add(tuple(answer.token_ids))
    assert len(answers) > 1  # the image matters


def test_two_pictures_text_alone_and_a_follow_up_turn(pair, photographs):
    vlm, reference = pair
    for pictures in ([], photographs[1:3]):
        answer = vlm.generate("What differs?", pictures, max_new_tokens=NEW_TOKENS)
        assert answer.token_ids == reference.generate([("user", "What differs?", pictures)])
    for picture, other in itertools.pairwise(photographs[:3]):
        chat = vlm.chat()
        first = chat.ask("What is it?", [picture], max_new_tokens=NEW_TOKENS)
        second = chat.ask("And this one?", [other], max_new_tokens=NEW_TOKENS)
        turns = [
            ("user", "What is it?", [picture]),
            ("assistant", first.text, []),
            ("user", "And this one?", [other]),
        ]

        assert second.token_ids == reference.generate(turns)
        assert second.cached_tokens > 64


def test_a_reduced_bundle_hands_over_k_rows_of_its_picture(tmp_path, photographs):
    folder = to_public_layout(write_siglip(tmp_path / "checkpoint"))
    vlm = fico_export.load(fico_export.export(folder, 16, out=tmp_path / "bundle"))
    for picture in photographs:
        encoded = vlm.encode_image(picture)
        answer = vlm.generate("What is it?", [picture], max_new_tokens=4)

        assert encoded.features.shape == (16, 64)
        assert (np.diff(encoded.keep_index) > 0).all()
        assert 0 <= encoded.keep_index.min() <= encoded.keep_index.max() < 64  # no row 0 for CLS, no 64
        assert answer.visual_tokens == 16


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def assert_same_bits(config, image):
    theirs = SiglipImageProcessorPil(**config)(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(ImageProcessor.from_config(config)(image), theirs, strict=True)


@pytest.mark.parametrize("config", [PUBLIC, SILENT], ids=["public", "silent"])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_a_photograph_has_the_same_bits_as_in_transformers(config, name):
    assert_same_bits(config, Image.fromarray(getattr(skimage.data, name)()))


@given(
    width=st.integers(1, 400), height=st.integers(1, 400), tall=st.integers(1, 130), wide=st.integers(1, 130)
)
@settings(max_examples=40, deadline=None)
def test_random_shapes_have_the_same_bits_as_in_transformers(width, height, tall, wide):
    config = {**PUBLIC, "size": {"height": tall, "width": wide}}
    assert_same_bits(config, noise(width, height, seed=width * 401 + height))


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"shortest_edge": 60}},
        {"size": 60},
        {"do_center_crop": True, "crop_size": {"height": 97, "width": 96}},
        {"do_pad": True},
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {"resample": 2},
        {"resample": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("base", [PUBLIC, SILENT], ids=["public", "silent"])
def test_every_setting_has_the_same_bits_as_in_transformers(base, changes):
    assert_same_bits({**base, **changes}, noise(150, 101))


def test_the_fast_processor_gives_the_pillow_result():
    image = noise(200, 150)
    fast = ImageProcessor.from_config({**PUBLIC, "image_processor_type": "SiglipImageProcessorFast"})(image)
    np.testing.assert_array_equal(fast, ImageProcessor.from_config(PUBLIC)(image))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"do_center_crop": True}, "crop_size"),
        ({"size": None}, "size"),
        ({"do_pad": True, "pad_size": {"height": 9, "width": 9}}, "pad_size"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_followed_is_refused(wrong, named):
    with pytest.raises(ConfigError, match=named) as caught:
        ImageProcessor.from_config({**PUBLIC, **wrong})
    assert caught.value.fix


def test_the_crop_box_is_the_whole_picture():
    assert ImageProcessor.from_config(PUBLIC).crop_box(640, 480) == pytest.approx((0, 0, 640, 480))
