"""Pictures: a file to an upright RGB picture in memory, as transformers' ``load_image`` reads it; and one encoded."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from fico_export.errors import InputError

MAX_PIXELS = 200_000_000
"""Pixels of the largest picture that is decoded, padded or resized: 600 MB as RGB."""

_pillow_lock = threading.Lock()


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision graph made of a picture.

    Attributes:
        features: [K, D] in the bundle's precision, ready for the decoder.
        keep_index: [K] int64 raster positions, ascending.
        digest: identifies the pixels, and the prompt where the graph read it, so that a conversation knows a picture it has seen.
    """

    features: npt.NDArray[Any]
    keep_index: npt.NDArray[np.int64]
    digest: str


def load_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Read a picture upright and as RGB; of an animation, its first frame.

    Args:
        source: a file, the bytes of one, or an open picture (which is left as it is).

    Returns:
        An RGB picture with its EXIF rotation applied, in memory.

    Raises:
        InputError: the source is an address, missing, empty, damaged, not a picture, or over ``MAX_PIXELS``.
    """
    if isinstance(source, Image.Image):
        name = "the picture given"
    elif isinstance(source, bytes):
        name = f"the {len(source)} bytes given"
        if not source:
            raise InputError("the picture given has no bytes", fix="give the bytes of a whole picture file")
    elif isinstance(source, str | Path):
        name = repr(str(source))
        _check_file(source)
    else:
        raise InputError(
            f"a picture cannot be a {type(source).__name__}", fix="give a path, bytes, or a PIL.Image.Image"
        )
    try:
        with _quiet_pillow():
            return _upright_rgb(source, name)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not a picture in a format that Pillow {PIL.__version__} reads",
            fix="convert it to PNG or JPEG",
        ) from error
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes their parsers raise
        raise InputError(
            f"{name} is cut short or damaged: {error}",
            fix="copy or download the file again, or save it anew",
        ) from error


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow with our limit on pixels, and silent.

    Pillow's limit is one module variable: it warns above it and refuses above twice it. Plugins read it again
    while decoding (an .ico may hold a PNG larger than its directory says), so it has to stand during the whole
    load. Its other warnings are about metadata and palettes, and change no pixel.
    """
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _upright_rgb(source: str | Path | bytes | Image.Image, name: str) -> Image.Image:
    if isinstance(source, Image.Image):
        _check_pixels(source, name)
        upright = ImageOps.exif_transpose(source)
        return upright if upright.mode == "RGB" else upright.convert("RGB")
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        _check_pixels(picture, name)
        # In place, and no convert of what is RGB already: a copy of a large picture is 600 MB.
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode != "RGB":
            return picture.convert("RGB")
        picture.load()
        return picture


def _check_file(source: str | Path) -> None:
    if str(source).lower().startswith(("http://", "https://")):
        raise InputError(
            f"{str(source)!r} is an address, not a file", fix="download it first and give the file"
        )
    path = Path(source)
    try:
        if path.is_dir():
            raise InputError(f"{str(source)!r} is a folder", fix="give one picture file in it")
        if not path.is_file():
            raise InputError(
                f"there is no file {str(source)!r}", fix=f"give a path that exists from {Path.cwd()}"
            )
        if path.stat().st_size == 0:
            raise InputError(f"{str(source)!r} has no bytes", fix="copy or download the picture again")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(source)!r} cannot be opened: {error}", fix="give the path of a file that you may read"
        ) from error


def _check_pixels(picture: Image.Image, name: str) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_large(f"{name}, {picture.width}×{picture.height},")
    if picture.width * picture.height == 0:
        raise InputError(f"{name} has no pixels", fix="give a picture that has some")


def _too_large(name: str) -> InputError:
    return InputError(
        f"{name} has over {MAX_PIXELS:,} pixels",
        fix="scale the picture down first; the tower sees far fewer",
    )
