"""Patches are mapped back to the pixels that the processor really cut them from."""

import types

import numpy as np
import pytest
from PIL import Image
from report_records import manifest as manifest_of

from fico_export.bundle.profiles import LayoutRecord, square
from fico_export.errors import InputError
from fico_export.report import kept as keeping
from fico_export.report.geometry import UNSEEN, patches_of, view
from fico_export.report.overlay import DARK, fitted, flows, lit, merged_into
from fico_export.runtime.inputs.images import ImageFeatures
from fico_export.runtime.inputs.layout import Layout
from fico_export.runtime.inputs.layouts.base import Tile
from fico_export.runtime.inputs.preprocess import ImageProcessor

PLAIN = {"do_normalize": False, "do_rescale": False, "image_mean": 0}
CROPS = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 112},
    "crop_size": 112,
    **PLAIN,
}
PADS = CROPS | {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
SQUEEZES = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 118, "width": 118}, **PLAIN}
# 118 = 8 · 14 + 6: the last six columns and rows are in no patch
SHAPES = [(600, 400), (401, 607), (112, 112), (90, 64), (1000, 501)]


def seen(config, size, side):
    processor = ImageProcessor.from_config(config)
    profile = square(side, (8, 8), aside=0, patch_size=14)
    return processor, view(profile, [(Tile((0, 0, *size), size), processor.crop_box(*size))])


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize(("config", "side"), [(CROPS, 112), (PADS, 112), (SQUEEZES, 118)])
def test_a_patch_lies_where_its_pixels_come_from(config, side, size):
    """An image whose colours are its coordinates, through the processor: each patch's mean colour is its box's centre."""
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    picture = Image.fromarray(np.stack([x * 255, y * 255, x * 0], -1).round().astype(np.uint8))
    processor, found = seen(config, size, side)
    pixels = processor(picture)[0] / 255
    inside = 0
    for patch, (left, top, right, bottom) in enumerate(found.patch_boxes()):
        margin_x, margin_y = right - left, bottom - top
        if left < margin_x or top < margin_y or right > width - margin_x or bottom > height - margin_y:
            continue  # resizing blends with what is beyond the edge
        row, column = divmod(patch, 8)
        part = pixels[:, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14].mean((1, 2))

        assert abs(part[0] * width - (left + right) / 2) < 0.04 * margin_x + width / 255 / 4
        assert abs(part[1] * height - (top + bottom) / 2) < 0.04 * margin_y + height / 255 / 4
        inside += 1
    assert inside >= 4


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.37])
@pytest.mark.parametrize("config", [CROPS, PADS])
def test_each_pixel_belongs_to_the_patch_that_holds_its_centre(config, scale):
    _, found = seen(config, (90, 64), 112)
    width, height = round(90 * scale), round(64 * scale)
    (owner,) = found.patch_of_pixels(width, height, scale)
    expected = np.full((height, width), UNSEEN)
    for patch, (left, top, right, bottom) in enumerate(found.patch_boxes(scale)):
        for y in range(height):
            for x in range(width):
                if left <= x + 0.5 < right and top <= y + 0.5 < bottom:
                    expected[y, x] = patch

    assert (owner == expected).mean() > 0.999  # a centre on an edge may fall to either side by rounding
    assert ((owner == UNSEEN) == (expected == UNSEEN)).all()


def test_what_is_cropped_away_is_seen_by_no_patch():
    _, found = seen(CROPS, (600, 400), 112)
    (owner,) = found.patch_of_pixels(600, 400)

    assert (owner[:, :100] == UNSEEN).all()
    assert (owner[:, 500:] == UNSEEN).all()
    assert (owner[:, 100:500] != UNSEEN).all()


def test_padding_lies_outside_the_picture():
    _, found = seen(PADS, (600, 400), 112)
    (owner,) = found.patch_of_pixels(600, 400)

    assert (owner != UNSEEN).all()
    assert found.box == (0, -100, 600, 500)
    assert 0 not in owner  # the first row of patches is padding
    assert 8 * 2 in owner


def test_a_kept_cls_token_is_no_patch():
    with_cls, without = (square(112, (8, 8), aside=aside, patch_size=14) for aside in (1, 0))

    assert patches_of(np.array([0, 1, 5]), with_cls).tolist() == [0, 4]
    assert patches_of(np.array([1, 5]), with_cls).tolist() == [0, 4]
    assert patches_of(np.array([0, 5]), without).tolist() == [0, 5]


def brightest(pixels, count):
    """The patches of the processed image with the most light, found by plain loops."""
    means = [
        (-pixels[0, :, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14].mean(), 8 * row + column)
        for row in range(8)
        for column in range(8)
    ]
    return np.array(sorted(patch for _, patch in sorted(means)[:count]))


@pytest.mark.parametrize("aside", [0, 1])
@pytest.mark.parametrize("config", [CROPS, PADS])
def test_the_interesting_cell_of_a_photograph_is_lit(config, aside):
    """A white square in a dark 3:2 image; the cue is planted: what is kept are the brightest patches that the tower sees."""
    array = np.full((400, 600, 3), 40, np.uint8)
    array[150:250, 350:450] = 255
    processor = ImageProcessor.from_config(config)

    def encode_image(picture, prompt):
        patches = brightest(processor(picture), 4)
        index = np.concatenate([np.zeros(aside, np.int64), patches + aside])
        return ImageFeatures(np.zeros((len(index), 1)), index, "", picture.size, None)

    vlm = types.SimpleNamespace(
        manifest=manifest_of(), processor=processor, reads_prompt=False, encode_image=encode_image,
        layout=Layout(
            LayoutRecord(rule="square"), [square(112, (8, 8), aside=aside, patch_size=14)], "original", 3
        ),
    )  # fmt: skip
    found = keeping.kept(vlm, Image.fromarray(array))
    drawn = np.asarray(lit(found.picture, found.view, found.patches)).astype(int)

    assert found.cls == (aside == 1)
    assert found.outside == 0
    bright = drawn[..., 0] == 255
    assert bright[150:250, 350:450].mean() > 0.4  # four patches of 50 px, or 75 px, on a square of 100
    assert not bright[:150].any()
    assert not bright[250:].any()
    assert not bright[:, :350].any()
    assert not bright[:, 450:].any()
    dark = drawn[10, 300]
    assert dark.tolist() == [round(40 * DARK)] * 3


def test_kept_patches_in_padding_are_counted():
    _, found = seen(PADS, (600, 400), 112)
    picture = Image.new("RGB", (600, 400))

    assert keeping.Kept(picture, found, np.array([0, 7, 20, 63]), False).outside == 3


def test_the_drawing_is_the_picture_where_it_is_kept_and_dark_elsewhere():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 90, 3), np.uint8))
    _, found = seen(CROPS, picture.size, 112)
    drawn, before = np.asarray(lit(picture, found, np.array([3, 40]))), np.asarray(picture)
    (owner,) = found.patch_of_pixels(*picture.size)
    for y in range(64):
        for x in range(90):
            if owner[y, x] in (3, 40):
                assert (drawn[y, x] == before[y, x]).all()
            elif owner[y, x] != UNSEEN:
                assert np.abs(drawn[y, x] - before[y, x] * DARK).max() <= 0.51
            else:
                assert len(set(drawn[y, x].tolist())) == 1  # hatched in grey


def test_lines_lead_to_the_patch_that_holds_most():
    picture = Image.new("RGB", (112, 112), (90, 90, 90))
    _, found = seen(CROPS, (112, 112), 112)
    shares = np.zeros((2, 64))
    shares[0, 0] = shares[1, 63] = 1
    shares[:, 7] = 0.2, 0.8
    drawn = np.asarray(flows(picture, found, np.array([0, 63]), shares)).astype(int)
    blue = drawn[..., 2] > drawn[..., 0] + 20

    assert merged_into(np.array([0, 63]), shares).tolist() == [0, 63]
    assert blue[5:9, 103:107].any()  # the centre of patch 7
    assert blue[50:60, 104:107].any()  # half-way down to patch 63
    assert not blue[5:9, 40:70].any()  # and nothing on the way to patch 0


def test_small_pictures_are_enlarged_by_whole_numbers_and_large_ones_fitted():
    assert fitted((192, 192), 640) == 3
    assert fitted((640, 100), 640) == 1
    assert fitted((1280, 100), 640) == 0.5


def test_a_method_that_reads_the_prompt_needs_one():
    for vlm in (
        types.SimpleNamespace(manifest=manifest_of(), reads_prompt=True),
        types.SimpleNamespace(
            manifest=manifest_of(handed_over=64), reads_prompt=False
        ),  # reduces in the decoder
    ):
        with pytest.raises(InputError) as refused:
            keeping.kept(vlm, Image.new("RGB", (9, 9)))

        assert "--prompt" in refused.value.fix
