"""Bounds on what an image's headers may ask of the reader, looked at before it decodes: a small file must not take much."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from fico_export.errors import InputError

MAX_PIXELS = 200_000_000
"""Pixels of the largest image that is decoded, padded or resized: 600 MB as RGB."""

_MAX_READS = 20_000
_MAX_METADATA_BYTES = 20_000_000
_MAX_STRIPS = 250_000
_SPARE_TILE_PIXELS = 1 << 22
_MAX_SCANNED_PIXELS = 4_000_000_000
_MAX_TAGS = 4096

_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q"}
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 262, 277
_SUBFILE, _STRIPS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _FORMAT, _DNG = 254, 273, 322, 323, 324, 339, 50706
_LOOKED_AT = (
    _WIDTH,
    _HEIGHT,
    _BITS,
    _PHOTOMETRIC,
    _SAMPLES,
    _SUBFILE,
    _TILE_WIDTH,
    _TILE_HEIGHT,
    _FORMAT,
    _DNG,
)


class BoundedReader(io.BytesIO):
    """The bytes of a file, whose headers may be read in so many steps only.

    Readers join comments of a GIF and segments of a JPEG as they find them, in time that grows with the square of their number,
    and a directory of a TIFF may name the same bytes again and again.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        # WebP and AVIF are read whole at once, and of a TIFF all tags, whose length is checked.
        whole = content.startswith((b"RIFF", b"II", b"MM")) or content[4:8] == b"ftyp"
        self._reads, self._left = _MAX_READS, _MAX_METADATA_BYTES + (len(content) if whole else 0)
        self._limited = True

    def lift(self) -> None:
        """The headers are read: what is read from now on is pixels."""
        self._limited = False

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file; over the bounds, an error."""
        found = super().read(size)
        if self._limited:
            self._reads, self._left = self._reads - 1, self._left - len(found)
            if self._reads < 0 or self._left < 0:
                raise ExcessError
        return found


class ExcessError(Exception):
    """The headers of a file are longer than those of any image."""


@dataclass(frozen=True)
class TiffHeader:
    """The first directory of a TIFF.

    Attributes:
        tags: the first value of each tag that is looked at here, by the tag's number.
    """

    tags: dict[int, int]

    @classmethod
    def of(cls, tags: Mapping[int, object]) -> TiffHeader:
        """From the directory that Pillow has read."""
        firsts = {tag: _first(tags[tag]) for tag in _LOOKED_AT if tag in tags}
        return cls({tag: value for tag, value in firsts.items() if isinstance(value, int)})

    def number(self, tag: int, default: int = 0) -> int:
        """The first value of a tag; `default` where the tag is not there."""
        return self.tags.get(tag, default)

    @property
    def is_raw(self) -> bool:
        """Whether it is a camera's raw file, whose first image is a thumbnail."""
        return _DNG in self.tags or self.number(_SUBFILE) & 1 == 1

    @property
    def white_is_zero(self) -> bool:
        """Whether the smallest value is white."""
        return self.number(_PHOTOMETRIC, 1) == 0

    @property
    def unsigned(self) -> bool:
        """Whether values are whole numbers without a sign."""
        return self.number(_FORMAT, 1) == 1

    @property
    def signed_bytes(self) -> bool:
        """Whether values are bytes with a sign."""
        return self.number(_FORMAT, 1) == 2 and self.number(_BITS, 1) == 8

    @property
    def says(self) -> str:
        """The form of its pixels, such as `3 × 32-bit float`."""
        forms = {2: "signed integer", 3: "float", 5: "complex integer", 6: "complex float"}
        form = forms.get(self.number(_FORMAT, 1), "integer")
        return f"{self.number(_SAMPLES, 1)} × {self.number(_BITS, 1)}-bit {form}"


def _first(value: object) -> object:
    return value[0] if isinstance(value, tuple) and value else value


def tiff_header(content: bytes, name: str) -> TiffHeader | None:
    """Read the first directory of a TIFF, and refuse one that asks for more than its image; None of what is no TIFF.

    Raises:
        InputError: too many tags or strips, values longer than the file, or tiles far larger than the image.
    """
    kinds = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
    if (kind := kinds.get(content[:4])) is None:
        return None
    end, big = kind
    try:
        return _checked(_directory(content, end, name, big=big), name)
    except (struct.error, OverflowError):
        raise InputError(
            f"{name} is cut short or damaged: a TIFF without a whole directory",
            fix="copy or download the file again, or save it anew",
        ) from None


def _directory(content: bytes, end: str, name: str, *, big: bool) -> TiffHeader:
    (at,) = struct.unpack_from(end + ("Q" if big else "I"), content, 8 if big else 4)
    (count,) = struct.unpack_from(end + ("Q" if big else "H"), content, at)
    if count > _MAX_TAGS:
        raise excessive(name, f"{count} tags in its directory")
    at += 8 if big else 2
    entry, step, inline = (end + "HHQ", 20, 8) if big else (end + "HHI", 12, 4)
    tags: dict[int, int] = {}
    together = 0
    for i in range(count):
        tag, form, values = struct.unpack_from(entry, content, at + i * step)
        size = _SIZES.get(form, 1) * values
        place = at + i * step + step - inline
        if size > inline:
            together += size
            (place,) = struct.unpack_from(end + ("Q" if big else "I"), content, place)
        if together > len(content):
            raise excessive(name, "tags longer than the file")
        if tag in (_STRIPS, _TILES) and values > _MAX_STRIPS:
            raise excessive(name, f"{values:,} strips")
        if tag in _LOOKED_AT and form in _NUMBERS and tag not in tags and values:
            tags[tag] = struct.unpack_from(end + _NUMBERS[form], content, place)[0]
    return TiffHeader(tags)


def _checked(header: TiffHeader, name: str) -> TiffHeader:
    pixels = header.number(_WIDTH) * header.number(_HEIGHT)
    tile = header.number(_TILE_WIDTH) * header.number(_TILE_HEIGHT)
    if pixels <= MAX_PIXELS and tile > pixels * 4 + _SPARE_TILE_PIXELS:
        raise excessive(name, f"tiles of {header.number(_TILE_WIDTH)}×{header.number(_TILE_HEIGHT)} pixels")
    return header


def require_few_scans(content: bytes, pixels: int, name: str) -> None:
    """Refuse a JPEG that passes over its pixels again and again: a few bytes a pass, and seconds.

    Raises:
        InputError: it does.
    """
    scans = content.count(b"\xff\xda")
    if scans > 16 and scans * pixels > _MAX_SCANNED_PIXELS:
        raise excessive(name, f"{scans} scans")


def require_short_exif(exif: object, name: str) -> None:
    """Refuse EXIF whose directory names the same bytes again and again.

    Raises:
        InputError: it does.
    """
    content = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    if content:
        try:
            tiff_header(content, name)
        except InputError as error:
            if "damaged" not in error.what:  # damaged EXIF turns nothing, and is no reason to refuse an image
                raise


def excessive(name: str, what: str) -> InputError:
    """The refusal of an image whose headers ask for more than an image needs."""
    return InputError(f"{name} has {what}, as no image needs", fix="save it anew, as PNG or JPEG")
