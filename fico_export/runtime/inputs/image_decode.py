"""The bytes of a file to an upright image: which readers Pillow may use, within which bounds, and what its errors mean."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import PIL
from PIL import ExifTags, Image, UnidentifiedImageError, features

from fico_export.errors import InputError
from fico_export.runtime.inputs import image_bounds, image_kinds
from fico_export.runtime.inputs.deep_images import has_deep_values
from fico_export.runtime.inputs.image_bounds import MAX_PIXELS, BoundedReader, ExcessError, TiffHeader

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow is let read. Its other readers are of old formats, and one of them starts a program (EPS)."""

_ANIMATED = ("GIF", "WEBP", "PNG")
"""Of these, the formats that can hold several frames."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_pillow_lock = threading.Lock()


def decode_frames(
    content: bytes, name: str, choose: Callable[[int], Iterable[int]]
) -> tuple[dict[int, Image.Image], float | None]:
    """Frames of an animated image, upright and as RGB.

    Args:
        content: the bytes of its file.
        name: what to call the file in a message.
        choose: number of frames → those that are taken.

    Returns:
        Those, by their numbers; and how many frames come in a second on average, where the file says it.

    Raises:
        InputError: as of `decode`; or what `choose` raises.
    """
    if (kind := image_kinds.by_content(content)) is not None:
        raise image_kinds.refuse(kind, name, None)
    file, found = BoundedReader(content), dict[int, Image.Image]()
    with _pillow(name), Image.open(file, formats=_ANIMATED) as picture:
        _check_pixels(picture, name)
        file.lift()
        total, milliseconds = getattr(picture, "n_frames", 1), 0.0
        wanted = set(choose(total))
        for number in range(total):
            picture.seek(number)
            picture.load()
            milliseconds += picture.info.get("duration", 0)
            if number in wanted:
                found[number] = picture.convert("RGB")
    return found, 1000 * total / milliseconds if milliseconds else None


def decode(content: bytes, name: str, path: Path | None) -> tuple[Image.Image, TiffHeader | None]:
    """Decode a file's bytes.

    Args:
        content: the bytes.
        name: what to call the file in a message.
        path: the file, where it is one: its name helps to say what it is.

    Returns:
        The first image, upright, as RGB unless it has deep values; and the header of a TIFF.

    Raises:
        InputError: it is of a format that is not read, damaged, over `MAX_PIXELS`, or asks for more than an image needs.
    """
    if (kind := image_kinds.by_content(content)) is not None:
        raise image_kinds.refuse(kind, name, path)
    header = image_bounds.tiff_header(content, name)
    if header is not None and header.is_raw:
        raise image_kinds.refuse(image_kinds.RAW, name, path)
    file = BoundedReader(content)
    with _pillow(name):
        formats = _formats(content, name, path)
        try:
            picture = Image.open(file, formats=formats)
        except UnidentifiedImageError as error:
            if formats != FORMATS:
                raise _damaged(name, error) from error
            raise _unidentified(name, path, header) from error
        with picture:
            _check_pixels(picture, name)
            if picture.format in ("JPEG", "MPO"):
                image_bounds.require_few_scans(content, picture.width * picture.height, name)
            image_bounds.require_short_exif(picture.info.get("exif"), name)
            file.lift()
            picture.load()
            return _finished(picture, header, name), header


def settle(picture: Image.Image, name: str) -> tuple[Image.Image, TiffHeader | None]:
    """The same of an image that is open, which stays as it is.

    Raises:
        InputError: it is closed, has no pixels or over `MAX_PIXELS`, or would start a program to be read.
    """
    unread = bool(getattr(picture, "tile", None))
    if unread and picture.format == "EPS":
        raise image_kinds.refuse(image_kinds.POSTSCRIPT, name, None)
    if unread and getattr(picture, "fp", None) is None:
        raise _closed(name)
    with _pillow(name):
        _check_pixels(picture, name)
        picture.load()
        tags = getattr(picture, "tag_v2", None)
        header = TiffHeader.of(tags) if tags is not None else None
        finished = _finished(picture, header, name)
        return finished.copy() if finished is picture else finished, header


@contextlib.contextmanager
def _pillow(name: str) -> Iterator[None]:
    """Pillow with our limit on pixels, silent, and its errors ours.

    Pillow's limit is one module variable: it warns above it and refuses above twice it. Plugins read it again
    while decoding, so it has to stand during the whole load. Its other warnings are about metadata and palettes,
    and change no pixel.
    """
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
        try:
            yield
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise _too_large(name) from error
        except ExcessError as error:
            raise image_bounds.excessive(name, "longer headers") from error
        except Exception as error:  # Pillow's readers raise whatever a damaged file makes their parsers raise
            raise _damaged(name, error) from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _formats(content: bytes, name: str, path: Path | None) -> tuple[str, ...]:
    """The formats that may be read, with HEIC and AVIF where their readers are installed.

    Raises:
        InputError: it is one of these two, and its reader is not.
    """
    if image_kinds.is_heic(content):
        if find_spec("pillow_heif") is None:
            raise image_kinds.refuse(image_kinds.HEIC, name, path)
        import_module("pillow_heif").register_heif_opener()
        return ("HEIF",)
    if image_kinds.is_avif(content):
        if not features.check("avif"):
            if find_spec("pillow_avif") is None:
                raise image_kinds.refuse(image_kinds.AVIF, name, path)
            import_module("pillow_avif")  # registers itself
        return ("AVIF",)
    return FORMATS


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF says; the same one where it says nothing."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF is no reason to refuse the pixels: it raises as Pillow's readers do
        orientation = 1
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _finished(picture: Image.Image, header: TiffHeader | None, name: str) -> Image.Image:
    """Upright, and converted as by transformers, which drops alpha; the same one where nothing is to be done."""
    picture = _upright(picture)
    if picture.mode == "RGB" or has_deep_values(picture, header):
        return picture
    straight = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)
    try:
        return (picture.convert(straight) if straight else picture).convert("RGB")
    except ValueError as error:
        raise InputError(
            f"{name} is of the colour space {picture.mode}, which is not read here",
            fix="save it as RGB, in PNG or JPEG",
        ) from error


def _check_pixels(picture: Image.Image, name: str) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_large(f"{name}, {picture.width}×{picture.height},")
    if picture.width * picture.height == 0:
        raise InputError(f"{name} has no pixels", fix="give an image that has some")


def _too_large(name: str) -> InputError:
    return InputError(
        f"{name} has over {MAX_PIXELS:,} pixels",
        fix="scale the image down first; the tower sees far fewer",
    )


def _unidentified(name: str, path: Path | None, header: TiffHeader | None) -> InputError:
    if header is not None:
        return InputError(
            f"{name} is a TIFF of {header.says} values, which Pillow {PIL.__version__} does not read",
            fix="save it with values of 8 bits, or in one channel with 16-bit integers or 32-bit floats",
        )
    if (kind := image_kinds.by_name(path)) is not None:
        said = image_kinds.refuse(kind, name, path)
        return InputError(
            f"{name} is not an image, though its name says that it is {kind.what}", fix=said.fix
        )
    return InputError(
        f"{name} is not an image in a format that is read here: {', '.join(FORMATS)}, HEIC, AVIF",
        fix="convert it to PNG or JPEG",
    )


def _closed(name: str) -> InputError:
    return InputError(f"{name} has been closed", fix="give it while it is open, or after its load()")


def _damaged(name: str, error: Exception) -> InputError:
    if "closed" in str(error):
        return _closed(name)
    return InputError(
        f"{name} is cut short or damaged: {error}",
        fix="copy or download the file again, or save it anew",
    )
