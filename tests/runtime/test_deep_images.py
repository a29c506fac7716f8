"""Grey images of over 8 bits: scaled by a range that is said, as NumPy scales them; none is clipped in silence."""

import io
import re

import numpy as np
import pytest
from image_files import png_of, ramp, saved, tiff_of
from PIL import Image

from fico_export.errors import ConfigError, ImageWarning, InputError
from fico_export.runtime.inputs.images import load_image

FILES = {
    "16-bit PNG": lambda: (ramp("u2", 700, 3000), png_of),
    "16-bit TIFF": lambda: (ramp("u2", 700, 60_000), tiff_of),
    "16-bit TIFF, big end first": lambda: (ramp("u2", 700, 60_000), lambda v: tiff_of(v, end=">")),
    "16-bit TIFF with a sign": lambda: (ramp("i2", -900, 800), tiff_of),
    "8-bit TIFF with a sign": lambda: (ramp("i1", -100, 90), tiff_of),
    "32-bit TIFF": lambda: (ramp("u4", 5, 4_000_000_000), tiff_of),
    "32-bit TIFF with a sign": lambda: (ramp("i4", -2_000_000_000, 1_000_000_000), tiff_of),
    "float TIFF": lambda: (ramp("f4", -0.25, 0.5), tiff_of),
    "float TIFF, big end first": lambda: (ramp("f4", 1e-30, 3e-30), lambda v: tiff_of(v, end=">")),
    "float TIFF of great values": lambda: (ramp("f4", -3e38, 3e38), tiff_of),
}


def scaled(values, low, high):
    """The specification: 0 at the low end, 255 at the high one, rounded."""
    exact = (values.astype(np.float64) - low) / (high - low) * 255
    return np.rint(np.clip(exact, 0, 255)).astype(np.uint8)


def assert_grey(image, expected):
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_scaled_by_its_own_range_with_a_warning_that_has_it(name):
    values, written = FILES[name]()
    low, high = float(values.min()), float(values.max())
    with pytest.warns(ImageWarning, match=re.escape(f"values from {low:g} to {high:g}")) as caught:
        image = load_image(written(values))

    assert len(caught) == 1
    assert "--image-range" in str(caught[0].message)
    assert "image_range=" in str(caught[0].message)
    assert_grey(image, scaled(values, low, high))


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_scaled_by_the_range_given_without_a_warning(name):
    values, written = FILES[name]()
    low, high = float(np.quantile(values, 0.2)), float(np.quantile(values, 0.7))

    assert_grey(load_image(written(values), image_range=(low, high)), scaled(values, low, high))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I", "F"])
def test_an_open_image_is_scaled_likewise(mode):
    values = ramp("u2", 300, 9000)
    opened = Image.new(mode, values.shape[::-1])
    for (row, column), value in np.ndenumerate(values):
        opened.putpixel((column, row), int(value))

    assert_grey(load_image(opened, image_range=(1000, 8000)), scaled(values, 1000, 8000))


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "f4", "f8"])
def test_an_array_is_scaled_likewise(dtype):
    values = ramp(dtype, 3, 4000)
    with pytest.warns(ImageWarning, match="from 3 to 4000"):
        assert_grey(load_image(values), scaled(values, 3, 4000))
    assert_grey(load_image(values[..., None], image_range=(0, 5000)), scaled(values, 0, 5000))


def test_a_file_where_the_least_value_is_white_is_turned():
    values = ramp("u2", 100, 900)

    turned = load_image(tiff_of(values, photometric=0), image_range=(100, 900))
    assert_grey(turned, 255 - scaled(values, 100, 900))


def test_a_deep_image_is_turned_upright():
    values = ramp("u2", 0, 5000)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = saved(Image.fromarray(values), "PNG", exif=exif)

    assert_grey(load_image(file, image_range=(0, 5000)), np.rot90(scaled(values, 0, 5000), -1))


@pytest.mark.parametrize("value", [0, 700, 65_535])
def test_an_image_of_one_value_is_black_and_says_so(value):
    with pytest.warns(ImageWarning, match=f"the value {value} everywhere") as caught:
        image = load_image(png_of(np.full((4, 5), value, "u2")))

    assert len(caught) == 1
    assert_grey(image, np.zeros((4, 5), np.uint8))


def test_an_image_of_one_value_has_its_place_in_a_range():
    assert_grey(
        load_image(png_of(np.full((4, 5), 300, "u2")), image_range=(0, 600)), np.full((4, 5), 128, np.uint8)
    )


def test_what_is_not_finite_is_counted_and_does_not_spoil_the_range():
    values = ramp("f4", 1, 3)
    values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -np.inf
    with pytest.warns(ImageWarning, match="3 are NaN") as caught:
        image = load_image(tiff_of(values))

    low, high = float(values[0, 1]), 3.0
    assert f"from {low:g} to {high:g}" in str(caught[0].message)
    seen = np.nan_to_num(
        values, nan=low, posinf=high, neginf=low
    )  # NaN is black, as is what lies below the range
    assert_grey(image, scaled(seen, low, high))


def test_an_image_without_a_finite_value_is_refused():
    with pytest.raises(InputError, match="no finite value"):
        load_image(tiff_of(np.full((3, 3), np.nan, "f4")))


def test_two_frames_by_one_range_keep_what_differs_between_them():
    near, far = ramp("u2", 500, 1500), ramp("u2", 500, 6000)
    first, second = (np.asarray(load_image(png_of(v), image_range=(0, 8000))) for v in (near, far))

    assert first.max() == round(1500 / 8000 * 255)
    assert second.max() == round(6000 / 8000 * 255)


@pytest.mark.parametrize(
    "given",
    [(5, 5), (6, 5), (0, float("nan")), (0, float("inf")), (1,), (1, 2, 3), 7, "ab", (-1.7e308, 1.7e308)],
)
def test_a_range_that_is_none_is_refused(given):
    with pytest.raises(ConfigError, match="image_range") as caught:
        load_image(png_of(ramp("u2", 0, 9)), image_range=given)
    assert "(0, 4096)" in caught.value.fix


def test_a_range_for_an_image_of_8_bits_is_refused():
    with pytest.raises(InputError, match="8 bits") as caught:
        load_image(saved(Image.new("L", (3, 3)), "PNG"), image_range=(0, 255))
    assert "leave out" in caught.value.fix


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits_is_read_by_its_high_bytes_as_transformers_does(channels):
    values = np.random.default_rng(0).integers(0, 65_536, (6, 7, channels)).astype("u2")

    found = np.asarray(load_image(png_of(values)))
    expected = np.repeat(values[..., :1], 3, axis=2) if channels == 2 else values[..., :3]
    np.testing.assert_array_equal(found, expected >> 8)


@pytest.mark.parametrize(
    ("values", "says"), [(ramp("f8", 0, 1), "64-bit float"), (ramp("f2", 0, 1), "16-bit float")]
)
def test_a_tiff_that_pillow_does_not_read_is_named_by_its_values(values, says):
    with pytest.raises(InputError, match=f"1 × {says}") as caught:
        load_image(tiff_of(values))
    assert "32-bit floats" in caught.value.fix


def test_a_file_object_is_scaled_too():
    values = ramp("u2", 10, 500)
    stream = io.BytesIO(png_of(values))
    with pytest.warns(ImageWarning, match="from 10 to 500"):
        assert_grey(load_image(stream), scaled(values, 10, 500))
