"""Images to pixel values: every bit of transformers' Pillow processors, and each way an image can be wrong."""

import io
import struct
import threading
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image as reference_load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from fico_export.errors import ConfigError, InputError
from fico_export.runtime.inputs import images
from fico_export.runtime.inputs.images import load_image
from fico_export.runtime.inputs.preprocess import ImageProcessor

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 112},
    "crop_size": {"height": 112, "width": 112},
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}
SQUARE = {**CLIP, "image_processor_type": "LlavaImageProcessor", "do_pad": True}
SIZES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (112, 112),
    (113, 111),
    (640, 480),
    (333, 777),
    (1000, 13),
    (5, 600),
    (111, 112),
]
PHOTOGRAPHS = ["astronaut", "coffee", "chelsea"]


def reference_pixels(config, image):
    kind = (
        CLIPImageProcessorPil if config["image_processor_type"].startswith("CLIP") else LlavaImageProcessorPil
    )
    return kind(**config)(image, return_tensors="np")["pixel_values"]


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def assert_same_bits(config, image):
    ours = ImageProcessor.from_config(config)(image)
    theirs = reference_pixels(config, image)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs, strict=True)


def saved(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_claiming(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("config", [CLIP, SQUARE], ids=["clip", "llava"])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_has_the_same_bits_as_in_transformers(config, name):
    assert_same_bits(config, Image.fromarray(getattr(skimage.data, name)()))


@pytest.mark.parametrize("config", [CLIP, SQUARE], ids=["clip", "llava"])
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_has_the_same_bits_as_in_transformers(config, size):
    assert_same_bits(config, noise(*size))


@given(width=st.integers(1, 400), height=st.integers(1, 400), pad=st.booleans(), edge=st.integers(1, 130))
@settings(max_examples=60, deadline=None)
def test_random_shapes_and_edges_have_the_same_bits_as_in_transformers(width, height, pad, edge):
    config = {
        **SQUARE,
        "do_pad": pad,
        "size": {"shortest_edge": edge},
        "crop_size": {"height": 64, "width": 47},
    }
    assert_same_bits(config, noise(width, height, seed=width * 401 + height))


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"height": 112, "width": 112}},
        {"size": {"height": 60, "width": 131}, "crop_size": {"height": 97, "width": 96}},
        {"size": 90, "crop_size": 101},
        {"size": 90, "default_to_square": True},
        {"do_resize": None, "size": None, "do_center_crop": None, "crop_size": None},
        {"do_normalize": None, "image_mean": None, "image_std": None},
        {"do_rescale": None, "rescale_factor": None},
        {"do_resize": False},
        {"do_center_crop": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"resample": 2},
        {"resample": 0},
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    ],
    ids=str,
)
@pytest.mark.parametrize("base", [CLIP, SQUARE], ids=["clip", "llava"])
def test_every_setting_has_the_same_bits_as_in_transformers(base, changes):
    assert_same_bits({**base, **changes}, noise(150, 101))


def test_a_config_of_the_oldest_form_is_read():
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 112, "crop_size": 112}
    image = noise(200, 150)
    ours = ImageProcessor.from_config(old)(image)
    np.testing.assert_array_equal(ours, ImageProcessor.from_config(CLIP)(image))


@pytest.mark.parametrize("name", ["CLIPImageProcessorFast", "LlavaImageProcessorFast"])
def test_the_fast_processors_give_the_pillow_result(name):
    image = noise(200, 150)
    slow = {**SQUARE, "image_processor_type": name.removesuffix("Fast")}
    ours = ImageProcessor.from_config({**slow, "image_processor_type": name})(image)
    np.testing.assert_array_equal(ours, reference_pixels(slow, image))


def exif_rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(noise(40, 25), "JPEG", exif=exif)


def palette_with_transparency():
    image = noise(40, 25).quantize(17)
    return saved(image, "PNG", transparency=bytes(range(0, 170, 10)))


FILES = {
    "rgb.jpg": lambda: saved(noise(40, 25), "JPEG"),
    "cmyk.jpg": lambda: saved(noise(40, 25).convert("CMYK"), "JPEG"),
    "grey.png": lambda: saved(noise(40, 25).convert("L"), "PNG"),
    "bilevel.png": lambda: saved(noise(40, 25).convert("1"), "PNG"),
    "rgba.png": lambda: saved(noise(40, 25).convert("RGBA"), "PNG"),
    "palette.png": palette_with_transparency,
    "animated.gif": lambda: saved(noise(40, 25), "GIF", save_all=True, append_images=[noise(40, 25, 1)]),
    "animated.webp": lambda: saved(noise(40, 25), "WEBP", save_all=True, append_images=[noise(40, 25, 1)]),
    "pages.tif": lambda: saved(noise(40, 25), "TIFF", save_all=True, append_images=[noise(40, 25, 1)]),
    "plain.bmp": lambda: saved(noise(40, 25), "BMP"),
    **{f"turned{n}.jpg": (lambda n=n: exif_rotated(n)) for n in range(1, 9)},
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_by_transformers(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FILES[name]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = reference_load_image(str(path))
    for source in (path, str(path), path.read_bytes()):
        ours = load_image(source)
        assert ours.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), strict=True)
        np.testing.assert_array_equal(ImageProcessor.from_config(CLIP)(ours), reference_pixels(CLIP, theirs))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(load_image(opened)), np.asarray(theirs))


def test_an_open_picture_is_left_as_it_is():
    with Image.open(io.BytesIO(exif_rotated(6))) as opened:
        assert load_image(opened).size == (25, 40)
        assert opened.size == (40, 25)
        assert opened.getexif()[0x0112] == 6
    plain = noise(4, 4)
    assert load_image(plain) is not plain


@pytest.mark.parametrize("config", [CLIP, SQUARE], ids=["clip", "llava"])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (300, 300)])
def test_the_crop_box_is_where_the_tower_looks(config, size):
    width, height = size
    processor = ImageProcessor.from_config({**config, "do_normalize": False, "resample": 2})
    left, top, right, bottom = processor.crop_box(width, height)
    # An image whose red is its column and whose green is its row: the tower reads back where it looks.
    columns, rows = np.meshgrid(np.arange(width) / width * 255, np.arange(height) / height * 255)
    picture = Image.fromarray(np.stack([columns, rows, columns * 0 + 255], -1).astype(np.uint8))
    seen = processor(picture)[0]
    centres = (np.arange(112) + 0.5) / 112
    across, down = left + centres * (right - left) - 0.5, top + centres * (bottom - top) - 0.5
    inside = seen[2] == 1
    tolerance = 1.5 / 255  # a byte is truncated, and a byte is rounded
    assert inside.sum() > 5000
    assert np.abs(seen[0] - across[None] / width)[inside].max() < tolerance
    assert np.abs(seen[1] - down[:, None] / height)[inside].max() < tolerance


def test_the_crop_box_of_a_landscape_is_its_middle_square():
    assert ImageProcessor.from_config(CLIP).crop_box(640, 480) == pytest.approx(
        (80, 0, 560, 480), abs=480 / 112
    )


def test_the_crop_box_of_a_padded_picture_reaches_outside():
    assert ImageProcessor.from_config(SQUARE).crop_box(640, 480) == pytest.approx((0, -80, 640, 560))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image_processor_type": "MllamaImageProcessor"}, "MllamaImageProcessor"),
        ({"image_processor_type": None}, "image processor"),
        ({"size": {"longest_edge": 3}}, "size"),
        ({"size": {"shortest_edge": 0}}, "size"),
        ({"size": "112"}, "size"),
        ({"size": None}, "size"),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_mean": [0.5, 0.5, 300]}, "image_mean"),
        ({"image_mean": [0.5, -0.1, 0.5]}, "image_mean"),
        ({"image_mean": [0.5, 10**30, 0.5]}, "image_mean"),
        ({"image_mean": [0.5, True, 0.5]}, "image_mean"),
        ({"image_mean": {"r": 0.5}}, "image_mean"),
        ({"image_mean": 1e300}, "image_mean"),
        ({**SQUARE, "do_pad": True, "do_normalize": False, "image_mean": [0.5, 0.5, 2]}, "image_mean"),
        ({"image_std": [0.5, -1, 0.5]}, "image_std"),
        ({"image_std": [0.5, 1e-300, 0.5]}, "image_std"),
        ({"image_std": [0.5, "1", 0.5]}, "image_std"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"rescale_factor": -1}, "rescale_factor"),
        ({"rescale_factor": True}, "rescale_factor"),
        ({"rescale_factor": [1]}, "rescale_factor"),
        ({"size": {"shortest_edge": 10**9}}, "size"),
        ({"size": {"height": True, "width": 112}}, "size"),
        ({"size": 1.5}, "size"),
        ({"size": [112, 112]}, "size"),
        ({"crop_size": 10**30}, "crop_size"),
        ({"resample": [3]}, "resample"),
        ({"resample": "bicubic"}, "resample"),
        ({"do_resize": "false"}, "do_resize"),
        ({"do_normalize": [0]}, "do_normalize"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"image_std": "half"}, "image_std"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
        ({"resample": 9}, "resample"),
        ({"resample": None}, "resample"),
        ({"do_pad": True, "pad_size": {"height": 9, "width": 9}}, "pad_size"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_followed_is_refused(wrong, named):
    with pytest.raises(ConfigError, match=named) as caught:
        ImageProcessor.from_config({**CLIP, **wrong})
    assert caught.value.fix


def test_the_supported_processors_are_listed():
    with pytest.raises(ConfigError) as caught:
        ImageProcessor.from_config({"image_processor_type": "PixtralImageProcessor"})
    assert "LlavaImageProcessor, LlavaNextImageProcessor," in caught.value.fix


def refusal(source):
    with pytest.raises(InputError) as caught:
        load_image(source)
    assert caught.value.fix
    return caught.value


def test_a_missing_file_is_named(tmp_path):
    assert "gone.png" in refusal(tmp_path / "gone.png").what
    assert "no file" in refusal("gone.png").what
    assert refusal("gone\0.png")


def test_a_folder_is_refused(tmp_path):
    assert "folder" in refusal(tmp_path).what


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    assert "no bytes" in refusal(tmp_path / "empty.png").what
    assert "no bytes" in refusal(b"").what


def test_text_is_not_a_picture(tmp_path):
    (tmp_path / "note.png").write_text("not an image")
    assert "not an image" in refusal(tmp_path / "note.png").what
    assert "not an image" in refusal(b"not an image").what


def test_something_else_is_not_a_picture():
    assert "set" in refusal({1, 2}).what


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_picture_is_refused(form):
    whole = saved(noise(90, 70), form)
    refusal(whole[: len(whole) // 2])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_damaged_picture_is_read_or_refused(form):
    whole = saved(noise(30, 20), form)
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in random.integers(0, min(len(whole), 200), 3):
            damaged[at] = random.integers(256)
        try:
            assert load_image(bytes(damaged)).mode == "RGB"
        except InputError as error:
            assert error.fix  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("address", ["http://example.org/cat.png", "HTTPS://example.org/cat.png"])
def test_an_address_is_refused(address):
    assert "download" in refusal(address).fix


@pytest.mark.parametrize("size", [(50_000, 50_000), (14_143, 14_143)])
def test_a_bomb_is_refused_from_its_header(size):
    header = png_claiming(*size)
    tracemalloc.start()
    try:
        error = refusal(header)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert "200,000,000" in error.what


@pytest.mark.parametrize("pixels", [100_000_000, 190_000_000])
def test_a_picture_under_the_limit_is_decoded_without_a_warning(pixels):
    # The data is short, so that decoding stops at once: what matters is that it was begun.
    assert "cut short" in refusal(png_claiming(10_000, pixels // 10_000)).what


def test_a_picture_of_100_million_pixels_is_read():
    whole = saved(Image.new("1", (12_500, 8_000)), "PNG")
    assert load_image(whole).size == (12_500, 8_000)


def test_a_bomb_inside_an_icon_is_refused():
    inner = png_claiming(50_000, 50_000)
    icon = (
        struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, len(inner), 22) + inner
    )
    refusal(icon)


def test_the_limits_of_pillow_are_left_as_they_were():
    before, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    workers = [threading.Thread(target=load_image, args=(saved(noise(50, 50), "PNG"),)) for _ in range(8)]
    for worker in workers:
        worker.start()
    refusal(png_claiming(50_000, 50_000))
    for worker in workers:
        worker.join()
    assert before == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)


@pytest.mark.parametrize("config", [CLIP, SQUARE], ids=["clip", "llava"])
def test_a_picture_too_long_and_thin_is_refused(config):
    processor = ImageProcessor.from_config(config)
    with pytest.raises(InputError, match="20000×1") as caught:
        processor(Image.new("RGB", (20_000, 1)))
    assert "crop" in caught.value.fix
    with pytest.raises(InputError):
        processor.crop_box(1, 20_000)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(InputError, match="no pixels"):
        ImageProcessor.from_config(CLIP)(Image.new("RGB", (0, 5)))
    assert "no pixels" in refusal(Image.new("RGB", (5, 0))).what


def test_a_long_but_possible_picture_is_read():
    assert images.MAX_PIXELS > 112 * 112 * 10_000
    assert ImageProcessor.from_config(CLIP)(Image.new("RGB", (10_000, 1))).shape == (1, 3, 112, 112)
