"""Where an image comes from: what is read is the same image, what is not read says what to do."""

import base64
import io
import os
import socket
import struct
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from image_files import directory, saved
from PIL import Image, features

from fico_export.errors import InputError
from fico_export.runtime.inputs import image_sources
from fico_export.runtime.inputs.image_sources import beside, label_of, name_of
from fico_export.runtime.inputs.images import ImageFeatures, image_list, load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
PNG = saved(Image.fromarray(PIXELS), "PNG")
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def refusal(source):
    with pytest.raises(InputError) as caught:
        load_image(source)
    assert caught.value.fix
    assert len(caught.value.what) < 700
    return caught.value


def assert_same(source, expected=PIXELS):
    np.testing.assert_array_equal(np.asarray(load_image(source)), expected, strict=True)


@pytest.mark.parametrize(
    "source",
    [
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        PIXELS,
        np.asfortranarray(PIXELS),
        PIXELS.repeat(2, axis=1)[:, ::2],
        np.dstack([PIXELS, np.full((6, 9, 1), 7, np.uint8)]),
        Image.fromarray(PIXELS),
        DATA_URL,
        DATA_URL.replace("data:image/png;base64", "DATA:image/jpeg;charset=utf-8;BASE64"),
        DATA_URL.rstrip("="),
        "\n".join(DATA_URL[i : i + 60] for i in range(0, len(DATA_URL), 60)),
        DATA_URL.partition(",")[0] + "," + urllib.parse.quote(DATA_URL.partition(",")[2], safe=""),
    ],
    ids=lambda source: type(source).__name__,
)
def test_an_image_in_memory_is_read(source):
    assert_same(source)


def test_a_grey_array_is_grey():
    grey = PIXELS[..., 0]
    for source in (grey, grey[..., None]):
        assert_same(source, np.repeat(grey[..., None], 3, axis=2))


def test_a_file_is_read_by_any_form_of_its_path(tmp_path):
    path = tmp_path / "an image.png"
    path.write_bytes(PNG)
    for source in (path, str(path), os.path.relpath(path), Entry(path)):
        assert_same(source)


class Entry:
    """What os.scandir gives is a path in its own class too."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


def test_a_file_object_is_read_from_where_it_is_and_left_there(tmp_path):
    (tmp_path / "a").write_bytes(b"head" + PNG)
    with (tmp_path / "a").open("rb") as file:
        file.seek(4)
        assert_same(file)
        assert file.tell() == 4
        assert_same(file)


def test_a_pipe_is_read_to_its_end():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb") as sink:
        sink.write(PNG)
        sink.close()
        assert_same(source)


def test_a_file_object_at_its_end_says_so():
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")

    error = refusal(stream)
    assert "at its end" in error.what
    assert "seek(0)" in error.fix


def test_a_file_opened_as_text_or_closed_says_so():
    assert '"rb"' in refusal(io.StringIO("text")).fix
    closed = io.BytesIO(PNG)
    closed.close()
    assert "closed" in refusal(closed).what


def test_an_image_that_was_closed_says_so(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    with Image.open(tmp_path / "a.png") as opened:
        pass
    assert "closed" in refusal(opened).what


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((3, 40, 50), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((2, 4, 5, 3), np.uint8), "list(array)"),
        (np.zeros((4, 5, 2), np.uint8), "[H, W, 3]"),
        (np.zeros(12, np.uint8), "[H, W, 3]"),
        (np.full((4, 5, 3), 0.5), "array * 255"),
        (np.full((4, 5, 3), 99.0), "uint8"),
        (np.zeros((4, 5, 3), np.uint16), "uint8"),
        (np.zeros((4, 5), bool), "* 255"),
        (np.zeros((4, 5), complex), "uint8"),
        (np.zeros((4, 5), object), "uint8"),
        (np.array("a.png"), "[H, W, 3]"),
        (np.zeros((0, 5, 3), np.uint8), "some"),
        (np.zeros((0, 5), np.uint16), "some"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)), "scale the image down"),
        (np.broadcast_to(np.uint16(0), (20_000, 20_000)), "scale the image down"),
    ],
    ids=str,
)
def test_an_array_of_another_kind_is_refused_with_what_makes_it_one(array, says):
    error = refusal(array)
    assert says in error.fix
    assert "the array given" in error.what


@pytest.mark.parametrize(
    "expression",
    [
        "array.transpose(1, 2, 0)",
        "(array * 255).round().astype(numpy.uint8)",
        "array.astype(numpy.uint8) * 255",
    ],
)
def test_the_fix_for_an_array_works(expression):
    array = {
        "transpose": PIXELS.transpose(2, 0, 1), "round": PIXELS / 255, "astype": PIXELS > 127,
    }[next(word for word in ("transpose", "round", "astype") if word in expression)]  # fmt: skip
    assert expression in refusal(array).fix
    load_image(eval(expression, {"array": array, "numpy": np}))


@pytest.mark.parametrize(
    "url",
    [
        "data:image/svg+xml,<svg/>",
        "data:",
        "data:image/png",
        "data:image/png;base64,!!!!",
        "data:image/png;base64,aé",
    ],
)
def test_a_data_url_that_is_not_base64_is_refused(url):
    assert "base64" in refusal(url).what


def test_a_data_url_is_never_shown_whole():
    damaged = "data:image/png;base64," + base64.b64encode(PNG[:60] * 2000).decode()
    for said in (refusal(damaged).what, name_of(damaged), label_of(damaged)):
        assert len(said) < 300
        assert "data:image/png;base64" in said
        assert f"{len(damaged):,} characters" in said


def test_bytes_in_base64_without_a_head_are_recognised_and_not_shown_whole():
    error = refusal(base64.b64encode(PNG * 50).decode())
    assert "data:image/png;base64," in error.fix
    assert len(error.what) < 400


@pytest.mark.parametrize(
    ("address", "fix"),
    [
        (
            "https://example.org/a/cat.png",
            "curl -LO https://example.org/a/cat.png; then give the file: cat.png",
        ),
        ("https://example.org/cat.jpg?size=2&x=1", "curl -LO 'https://example.org/cat.jpg?size=2&x=1'"),
        ("HTTP://example.org/", "curl -Lo image HTTP://example.org/"),
        ("ftp://example.org/cat.png", "curl -LO ftp://example.org/cat.png"),
        ("s3://bucket/cat.png", "aws s3 cp s3://bucket/cat.png"),
        ("rtsp://camera/stream", "ffmpeg -i rtsp://camera/stream -frames:v 1"),
        ("gs://bucket/cat.png", "download it first"),
        ("file:///home/me/a%20cat.png", "'/home/me/a cat.png'"),
        (Path("https://example.org/cat.png"), "curl -LO https://example.org/cat.png"),
        ("https://example.org/\x1b[31m" + "x" * 5000, "curl -Lo image URL"),
    ],
)
def test_an_address_is_refused_with_what_fetches_it(address, fix):
    error = refusal(address)
    assert fix in error.fix
    assert "is an address" in error.what
    assert "\x1b" not in error.what + error.fix
    if not str(address).startswith("file"):
        assert "://" in error.what


def test_a_file_whose_name_looks_like_an_address_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("http:").mkdir()
    (Path("http:") / "a.png").write_bytes(PNG)
    assert_same("http:/a.png")


def test_pipes_devices_and_sockets_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        for path, kind in [
            (tmp_path / "fifo.png", "a pipe"),
            ("/dev/zero", "a device"),
            (tmp_path / "socket.png", "a socket"),
        ]:
            error = refusal(path)
            assert kind in error.what
            assert "--image -" in error.fix


def test_the_bytes_of_any_source_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(image_sources, "MAX_BYTES", 5000)
    (tmp_path / "large.png").write_bytes(bytes(5001))
    data_url = "data:image/png;base64," + base64.b64encode(bytes(5001)).decode()
    with open("/dev/zero", "rb") as endless:  # noqa: PTH123
        for source in (tmp_path / "large.png", bytes(5001), io.BytesIO(bytes(5001)), data_url, endless):
            assert "over 5,000 bytes" in refusal(source).what


def heif(brand, *others):
    return struct.pack(">I", 16 + 4 * len(others)) + b"ftyp" + brand + bytes(4) + b"".join(others) + bytes(64)


FOREIGN = {
    "photo.heic": (heif(b"heic", b"mif1"), "pip install pillow-heif"),
    "photo-mif1.jpg": (heif(b"mif1", b"heic"), "pip install pillow-heif"),
    "clip.mp4": (heif(b"isom", b"mp41"), "ffmpeg -i {} -frames:v 1 clip.png"),
    "clip.mov": (heif(b"qt  "), "ffmpeg"),
    "old.mov": (b"\0\0\0\x08wide\0\0\0\0mdat", "ffmpeg"),
    "clip.avi": (b"RIFF\0\0\0\0AVI LIST" + bytes(50), "ffmpeg"),
    "clip.mkv": (b"\x1a\x45\xdf\xa3" + bytes(50), "ffmpeg"),
    "clip.ts": ((b"\x47" + bytes(187)) * 4, "ffmpeg"),
    "video-named.png": (heif(b"mp42"), "ffmpeg"),
    "drawing.svg": (b'<?xml version="1.0"?>\n<!-- made -->\n<svg xmlns="x"></svg>', "rsvg-convert"),
    "page.pdf": (b"%PDF-1.7\n", "pdftoppm -png -singlefile {} page"),
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "gs -dSAFER"),
    "binary.eps": (b"\xc5\xd0\xd3\xc6" + bytes(60), "gs -dSAFER"),
    "saved.jpg": (b"<!DOCTYPE html><html></html>", "curl -LO"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "photo.cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(60), "darktable-cli"),
    "photo.cr3": (heif(b"crx "), "darktable-cli"),
    "photo.dng": (directory([(254, 4, 1, 1), (256, 4, 1, 4), (257, 4, 1, 4), (50706, 1, 4, 1)]), "darktable-cli"),
    "photo.nef": (directory([(254, 4, 1, 1), (256, 4, 1, 4), (257, 4, 1, 4)]), "darktable-cli"),
    "array.npy": (b"\x93NUMPY\1\0" + bytes(60), "numpy.load("),
    "photos.zip": (b"PK\3\4" + bytes(60), "unzip"),
    "photo.jxl": (b"\xff\x0a" + bytes(60), "djxl"),
    "photo.hdr": (b"#?RADIANCE\n" + bytes(60), "magick"),
    "plane.dcm": (bytes(128) + b"DICM" + bytes(60), "magick"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_says_what_it_is_and_what_to_do(tmp_path, name):
    content, fix = FOREIGN[name]
    path = tmp_path / name
    path.write_bytes(content)

    assert fix.format(path) in refusal(path).fix
    assert name in refusal(path).what
    assert refusal(content).fix  # without a name, by its content alone


@pytest.mark.parametrize("name", ["gone.heic", "clip.mp4", "photo.nef", "drawing.svg"])
def test_a_file_whose_content_says_nothing_is_told_by_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind" * 9)
    assert "though its name says" in refusal(tmp_path / name).what


CONVERTED = {"a.ppm": "PPM", "a.ico": "ICO", "a.tga": "TGA", "a.jp2": "JPEG2000", "a.pcx": "PCX", "a.dds": "DDS", "a.qoi": "QOI",
             "a.sgi": "SGI"}  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_a_format_that_is_read_no_more_is_converted_by_the_command_in_the_fix(tmp_path, name):
    Image.fromarray(PIXELS).resize((16, 16)).save(tmp_path / name, CONVERTED[name])
    command = refusal(tmp_path / name).fix.removeprefix("convert it to PNG: python ")

    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, cwd=tmp_path)
    assert load_image(tmp_path / "a.png").size == (16, 16)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_reads_it():
    image = Image.fromarray(PIXELS.repeat(8, 0).repeat(8, 1))
    found = np.asarray(load_image(saved(image, "AVIF", quality=95))).astype(int)
    assert np.abs(found - np.asarray(image)).mean() < 8


def test_avif_without_its_reader_says_what_installs_it(monkeypatch):
    content = heif(b"avif", b"mif1")
    monkeypatch.setattr(features, "check", lambda _: False)
    assert "pillow" in refusal(content).fix


def test_names_are_kept_as_given():
    assert label_of("a//b.png") == "a//b.png"
    assert beside(Path("lines"), "https://example.org/a.png") == "https://example.org/a.png"
    assert beside(Path("lines"), "a.png") == str(Path("lines/a.png"))


ENCODED = ImageFeatures(np.zeros((2, 3)), np.arange(2), "x", (2, 2), None)


@pytest.mark.parametrize(
    "alone",
    ["a.png", Path("a.png"), PNG, bytearray(PNG), PIXELS, Image.fromarray(PIXELS), io.BytesIO(PNG), ENCODED],
    ids=lambda x: type(x).__name__,
)
def test_an_image_alone_is_a_list_of_one(alone):
    listed = image_list(alone)
    assert len(listed) == 1
    assert listed[0] is alone


def test_several_images_are_a_list_of_them():
    assert image_list(["a.png", PNG]) == ["a.png", PNG]
    assert image_list(("a.png",)) == ["a.png"]
    assert image_list(name for name in ("a.png", "b.png")) == ["a.png", "b.png"]
    assert image_list(None) == image_list(()) == []


@pytest.mark.parametrize("wrong", [7, {"image": "a.png"}, [["a.png"]], [None]], ids=str)
def test_what_is_no_image_is_refused_by_its_kind(wrong):
    (listed,) = image_list(wrong)
    assert "an image cannot be a" in refusal(listed).what
