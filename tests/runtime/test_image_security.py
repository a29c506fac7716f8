"""Hostile images: none starts a program, and a small file takes little time and memory. Each is decoded in a process of its own."""

import contextlib
import json
import os
import stat
import struct
import subprocess
import sys
import warnings
import zlib
from random import Random

import numpy as np
import pytest
from image_files import (
    chunk,
    directory,
    gif_with_comment,
    jpeg_of_scans,
    jpeg_with,
    png,
    png_of,
    ramp,
    saved,
    tiff,
    tiff_of,
    webp_claiming,
    zeros,
)
from PIL import Image

from fico_export.errors import ImageWarning, InputError
from fico_export.runtime.inputs.images import MAX_PIXELS, load_image

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
newpath 0 0 moveto 20 20 lineto stroke
showpage
%%EOF
"""
SIDE = 14_000
STRIP = [(273, 4, 1, None), (278, 4, 1, 8), (279, 4, 1, 64)]
BASE = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]


def many_tags(count, size):
    """Tags that all name the same bytes."""
    return [(1000 + i, 1, size, 100) for i in range(count)]


def plain(before=b"", pixels=None):
    return png(4, 4, colour=0, pixels=zlib.compress(bytes(20)) if pixels is None else pixels, before=before)


REFUSED = {
    "a PNG whose text inflates to 2 GB": lambda: plain(chunk(b"zTXt", b"a\0\0" + zeros(2_000_000_000))),
    "a PNG of 3000 texts of 1 MB": lambda: plain(chunk(b"zTXt", b"a\0\0" + zeros(1_000_000)) * 3000),
    "a PNG whose colour profile inflates to 2 GB": lambda: plain(chunk(b"iCCP", b"a\0\0" + zeros(2_000_000_000))),
    "a PNG of 300 000 chunks": lambda: plain(chunk(b"tEXt", b"a\0b") * 300_000),
    "a PNG whose EXIF names the same 4 MB 4000 times": lambda: plain(
        chunk(b"eXIf", directory(many_tags(4000, 4_000_000), bytes(4_100_000)))
    ),
    "a GIF with a comment of 38 MB": lambda: gif_with_comment(150_000),
    "a GIF whose frame is larger than it says": lambda: (
        b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6)
        + b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x4c\x01\0;"
    ),
    "a WebP of 16383 pixels squared": lambda: webp_claiming(16_383, 16_383),
    "a TIFF with tiles of 40000 pixels squared": lambda: directory(
        [*BASE, (322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, None), (325, 4, 1, 64)], bytes(64)
    ),
    "a TIFF of 20 million strips": lambda: directory(
        [*BASE, (273, 4, 20_000_000, 500), (278, 4, 1, 1), (279, 4, 1, 8)], bytes(80_001_000)
    ),
    "a TIFF that names the same 40 MB 4000 times": lambda: directory(
        [*BASE, *STRIP, *many_tags(4000, 40_000_000)], bytes(40_001_000)
    ),
    "a TIFF of 9000 tags": lambda: directory([(i, 1, 1, 0) for i in range(9000)]),
    "a JPEG of 2000 scans": lambda: jpeg_of_scans(SIDE, SIDE, 2000),
    "a JPEG of 800 EXIF segments": lambda: jpeg_with(0xE1, b"Exif\0\0" + b"x" * 65_000, 800),
    "a JPEG whose EXIF names the same 50 kB 4000 times": lambda: jpeg_with(
        0xE1, b"Exif\0\0" + directory(many_tags(4000, 50_000), bytes(12_000)), 1
    ),
    "a BMP of 2 000 000 000 pixels squared": lambda: _patched(
        saved(Image.new("RGB", (4, 4)), "BMP"), 18, struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    ),
}  # fmt: skip
READ = {
    "a PNG of as many pixels as may be": lambda: png(SIDE, SIDE, pixels=zeros(SIDE * (1 + SIDE * 3))),
    "a PNG whose pixels go on for 2 GB": lambda: plain(pixels=zeros(2_000_000_000)),
    "a TIFF whose strip inflates to 2 GB": lambda: tiff(100, 100, zeros(2_000_000_000), compression=8),
    "a GIF of 1000 frames": lambda: saved(
        Image.new("L", (40, 40)), "GIF", save_all=True,
        append_images=[Image.new("L", (40, 40), i % 256) for i in range(1000)],
    ),
    "a JPEG of 200 scans": lambda: jpeg_of_scans(500, 500, 200),
}  # fmt: skip

CHILD = r"""
import json, re, sys, time
from pathlib import Path
from fico_export.errors import ImageWarning, InputError
from fico_export.runtime.inputs.images import load_image
began = time.process_time()
try:
    load_image(sys.argv[1])
    said = "read"
except InputError as error:
    said = error.what + " / " + error.fix
peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps([said, time.process_time() - began, peak]))
"""


def _patched(content, at, by):
    return content[:at] + by + content[at + len(by) :]


def decoded(path):
    """What came of it, seconds of CPU, and the peak of memory, of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path], capture_output=True, text=True, check=True, timeout=600
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", REFUSED)
def test_a_small_file_that_would_take_much_is_refused_at_little_cost(tmp_path, name):
    (tmp_path / "image").write_bytes(REFUSED[name]())

    said, seconds, peak = decoded(tmp_path / "image")
    assert said != "read"
    assert seconds < 30
    assert peak < 500_000_000 + 2 * (tmp_path / "image").stat().st_size


@pytest.mark.parametrize("name", READ)
def test_what_inflates_beyond_the_image_is_left_alone(tmp_path, name):
    (tmp_path / "image").write_bytes(READ[name]())

    said, seconds, peak = decoded(tmp_path / "image")
    assert said == "read"
    assert seconds < 60
    assert peak < 4 * MAX_PIXELS + 500_000_000


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """A `gs` that leaves a trace when it is started."""
    folder = tmp_path / "bin"
    folder.mkdir()
    trace = tmp_path / "started"
    for name in ("gs", "gswin32c", "magick", "convert"):
        (folder / name).write_text(f"#!/bin/sh\ntouch {trace}\n")
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return trace


@pytest.mark.parametrize("name", ["a.eps", "a.png", "a.jpg", "a"])
def test_an_eps_by_any_name_starts_no_program(tmp_path, interpreter, name):
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(InputError, match="PostScript") as caught:
        load_image(tmp_path / name)

    assert "gs -dSAFER" in caught.value.fix
    assert not interpreter.exists()


def test_an_eps_in_another_wrapping_starts_no_program(interpreter):
    for head in (
        b"\n",
        b" ",
        b"\xef\xbb\xbf",
        b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(EPS)) + bytes(20),
    ):
        with pytest.raises(InputError):
            load_image(head + EPS)
    assert not interpreter.exists()


def test_an_eps_that_is_open_and_not_yet_drawn_starts_no_program(tmp_path, interpreter):
    (tmp_path / "a.eps").write_bytes(EPS)
    with Image.open(tmp_path / "a.eps") as opened, pytest.raises(InputError, match="PostScript"):
        load_image(opened)
    assert not interpreter.exists()


def test_damaged_exif_does_not_spoil_an_image():
    whole = saved(Image.new("RGB", (16, 16), (9, 200, 30)), "JPEG")
    for body in (b"", b"II*\0", b"junk" * 9, b"II*\0\xff\xff\xff\x7f", directory([(0x0112, 2, 4, 0)])):
        segment = b"\xff\xe1" + struct.pack(">H", len(body) + 8) + b"Exif\0\0" + body
        assert load_image(whole[:2] + segment + whole[2:]).size == (16, 16)


def damaged(content, random):
    """The content with a few bytes, most of them of its headers, replaced, cut out or put in."""
    made = bytearray(content)
    for _ in range(random.choice((1, 2, 4, 16))):
        at = random.randrange(min(len(made), random.choice((40, 200, len(made)))))
        what = random.random()
        if what < 0.5:
            made[at] = random.randrange(256)
        elif what < 0.8:
            made[at : at + 8] = random.choice((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, b""))
        else:
            made[at:at] = random.randbytes(random.randrange(1, 50))
    return bytes(made)


SEEDS = {
    "PNG": lambda image: saved(image, "PNG"),
    "PNG of 16 bits": lambda image: png_of(ramp("u2", 0, 999)),
    "JPEG": lambda image: saved(image, "JPEG"),
    "progressive JPEG": lambda image: saved(image, "JPEG", progressive=True),
    "JPEG of several images": lambda image: saved(image, "MPO", save_all=True, append_images=[image]),
    "WebP": lambda image: saved(image, "WEBP"),
    "GIF": lambda image: saved(image, "GIF"),
    "BMP": lambda image: saved(image, "BMP"),
    "BigTIFF": lambda image: saved(image, "TIFF", big_tiff=True),
    "LZW TIFF": lambda image: saved(image, "TIFF", compression="tiff_lzw"),
    "float TIFF": lambda image: tiff_of(ramp("f4", 0, 1)),
}


@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_file_is_read_or_refused(name):
    random = Random(name)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    whole = SEEDS[name](Image.fromarray(pixels))
    for _ in range(150):
        with contextlib.suppress(InputError), warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)
            assert load_image(damaged(whole, random)).mode == "RGB"


def test_a_directory_beyond_every_file_is_refused():
    with pytest.raises(InputError, match="without a whole directory"):
        load_image(b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(60))
