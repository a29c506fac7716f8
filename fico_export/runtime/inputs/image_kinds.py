"""What a file is that is no image of ours, told by its content before any reader sees it, and what to do with it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fico_export.errors import InputError

_HEAD = 4096
_CONVERT = "convert it to PNG: python -c \"from PIL import Image; Image.open('{raw}').convert('RGB').save('{stem}.png')\""
_FRAME = "take a frame first: ffmpeg -i {file} -frames:v 1 {stem}.png"
_DEVELOP = "develop it to PNG or JPEG first, such as with darktable-cli {file} {stem}.png"
_MAGICK = "convert it to PNG first, such as with ImageMagick: magick {file} {stem}.png"

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_VIDEO_BOXES = (b"moov", b"mdat", b"wide", b"pnot")


@dataclass(frozen=True)
class Kind:
    """A kind of file that is refused; `fix` is a template of `file` (quoted for a shell), `raw` and `stem`."""

    what: str
    fix: str
    matches: Callable[[bytes], bool]
    suffixes: tuple[str, ...] = ()


def _starts(*heads: bytes) -> Callable[[bytes], bool]:
    return lambda content: content.startswith(heads)


def _riff(kind: bytes) -> Callable[[bytes], bool]:
    return lambda content: content[:4] in (b"RIFF", b"RIFX") and content[8:12] == kind


def brand(content: bytes) -> bytes:
    """The brand of a file of ISO boxes, such as b"heic"; b"" of any other."""
    if content[4:8] != b"ftyp":
        return b""
    main, others = content[8:12], content[16 : min(int.from_bytes(content[:4], "big"), 256)]
    if main in (b"mif1", b"msf1"):  # general: what else the file may be read as is more telling
        found = [others[i : i + 4] for i in range(0, len(others), 4)]
        return next((b for b in found if b in _AVIF_BRANDS), main)
    return main


def is_heic(content: bytes) -> bool:
    """Whether it is HEIC, a phone's format."""
    return brand(content) in _HEIC_BRANDS


def is_avif(content: bytes) -> bool:
    """Whether it is AVIF."""
    return brand(content) in _AVIF_BRANDS


def _is_mp4(content: bytes) -> bool:
    if content[4:8] in _VIDEO_BOXES:
        return True
    return (
        bool(brand(content)) and not is_heic(content) and not is_avif(content) and brand(content) != b"crx "
    )


def _is_mpeg(content: bytes) -> bool:
    if content.startswith(b"GIF8"):  # a G is what begins every packet of a stream
        return False
    stream = content[:1] == b"\x47" and content[188:189] == b"\x47" and content[376:377] in (b"\x47", b"")
    return stream or content.startswith((b"\0\0\1\xba", b"\0\0\1\xb3"))


def _is_svg(content: bytes) -> bool:
    head = content[:_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith(b"<") and re.search(rb"<(\w+:)?svg[\s>]", head) is not None


def _is_html(content: bytes) -> bool:
    return content[:_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


_VIDEO = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp")
_RAW = (
    ".dng",
    ".nef",
    ".nrw",
    ".cr2",
    ".cr3",
    ".arw",
    ".orf",
    ".rw2",
    ".raf",
    ".pef",
    ".srw",
    ".x3f",
    ".raw",
)
_NETPBM = (".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".pam")
RAW = Kind(
    "a camera's raw file",
    _DEVELOP,
    lambda c: (
        c[8:10] == b"CR"
        or brand(c) == b"crx "
        or c.startswith((b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FOVb"))
    ),
    _RAW,
)
HEIC = Kind("HEIC, which takes pillow-heif to read", "pip install pillow-heif", is_heic, (".heic", ".heif"))
AVIF = Kind(
    "AVIF, which this Pillow was built without", "pip install --upgrade 'pillow>=11.3'", is_avif, (".avif",)
)
POSTSCRIPT = Kind(
    "PostScript, which is a program and is not run here",
    "if you trust it, draw it first: gs -dSAFER -sDEVICE=png16m -r150 -o {stem}.png {file}",
    _starts(b"%!PS", b"\xc5\xd0\xd3\xc6", b"\x04%!PS"),
    (".eps", ".ps", ".epsf"),
)
_KINDS = (
    RAW,
    Kind("a video", _FRAME, _is_mp4, _VIDEO),
    Kind("a video (AVI)", _FRAME, _riff(b"AVI ")),
    Kind("a video (Matroska or WebM)", _FRAME, _starts(b"\x1a\x45\xdf\xa3")),
    Kind("a video (MPEG)", _FRAME, _is_mpeg),
    Kind("a video (WMV or FLV)", _FRAME, _starts(b"\x30\x26\xb2\x75", b"FLV\1")),
    Kind(
        "SVG, a drawing without pixels",
        "draw it first: rsvg-convert {file} -o {stem}.png",
        _is_svg,
        (".svg", ".svgz"),
    ),
    Kind(
        "PDF", "draw a page first: pdftoppm -png -singlefile {file} {stem}",
        lambda content: b"%PDF-" in content[:1024], (".pdf",),
    ),
    POSTSCRIPT,
    Kind("a web page", "download the image itself: curl -LO URL", _is_html, (".html", ".htm")),
    Kind("a Git LFS pointer, not the file itself", "git lfs pull", _starts(b"version https://git-lfs")),
    Kind(
        "a NumPy file", "load the array and give it: numpy.load('{raw}')", _starts(b"\x93NUMPY"), (".npy", ".npz")
    ),
    Kind("an archive (ZIP)", "unpack it first: unzip {file}", _starts(b"PK\3\4"), (".zip",)),
    Kind("compressed (gzip)", "unpack it first: gunzip {file}", _starts(b"\x1f\x8b"), (".gz",)),
    Kind("JPEG 2000", _CONVERT, _starts(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), (".jp2", ".j2k", ".jpx")),
    Kind(
        "JPEG XL", "convert it to PNG: djxl {file} {stem}.png", _starts(b"\xff\x0a", b"\0\0\0\x0cJXL "), (".jxl",)
    ),
    Kind("JPEG XR", _MAGICK, _starts(b"II\xbc\1"), (".jxr", ".wdp")),
    Kind(
        "netpbm (PPM, PGM)", _CONVERT,
        lambda content: re.match(rb"P[1-7fFy][\s#]|Pf[0-9]*\s", content) is not None, _NETPBM,
    ),
    Kind("a Photoshop file", _CONVERT, _starts(b"8BPS"), (".psd",)),
    Kind("an icon (ICO)", _CONVERT, _starts(b"\0\0\1\0"), (".ico", ".cur")),
    Kind("an icon (ICNS)", _CONVERT, _starts(b"icns"), (".icns",)),
    Kind("a DDS texture", _CONVERT, _starts(b"DDS "), (".dds",)),
    Kind("QOI", _CONVERT, _starts(b"qoif"), (".qoi",)),
    Kind("SGI", _CONVERT, _starts(b"\x01\xda"), (".sgi", ".rgb", ".bw")),
    Kind("PCX", _CONVERT, lambda content: re.match(rb"\x0a[\0-\x05][\0\x01][\x01\x02\x04\x08]", content) is not None, (".pcx",)),
    Kind("Sun raster", _CONVERT, _starts(b"\x59\xa6\x6a\x95"), (".ras",)),
    Kind("XPM or XBM", _CONVERT, _starts(b"/* XPM */", b"#define "), (".xpm", ".xbm")),
    Kind("FITS", _MAGICK, _starts(b"SIMPLE  ="), (".fits", ".fit")),
    Kind("OpenEXR", _MAGICK, _starts(b"\x76\x2f\x31\x01"), (".exr",)),
    Kind("Radiance HDR", _MAGICK, _starts(b"#?RADIANCE", b"#?RGBE"), (".hdr",)),
    Kind("WMF or EMF", _MAGICK, lambda c: c[:4] == b"\xd7\xcd\xc6\x9a" or c[40:44] == b" EMF", (".wmf", ".emf")),
    Kind("DICOM", _MAGICK, lambda content: content[128:132] == b"DICM", (".dcm",)),
    Kind("TGA", _CONVERT, lambda _: False, (".tga",)),
)  # fmt: skip

SUFFIXES = frozenset(
    {
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
    }
    | {".heic", ".heif", ".avif", ".svg", ".eps", ".jp2", ".jxl", ".psd", ".tga", *_NETPBM, *_VIDEO, *_RAW}
)
"""How the names of images end, those that are refused included."""


_HEADS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")


def looks_like_image(path: Path) -> bool:
    """Whether a file is one that an image was meant by: by its name, or else by its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return head.startswith(_HEADS) or _riff(b"WEBP")(head) or is_heic(head) or is_avif(head)


def refuse(kind: Kind, name: str, path: Path | None) -> InputError:
    """The refusal of a kind of file, its fix with the names of this file."""
    raw = str(path) if path is not None and str(path).isprintable() else "FILE"
    stem = path.stem if path is not None and re.fullmatch(r"[\w.-]+", path.stem) else "image"
    plain = raw if not re.search(r"[\"'$`!\\]", raw) else "FILE"
    fix = kind.fix.format(file=shlex.quote(raw), raw=plain, stem=stem)
    return InputError(f"{name} is {kind.what}, not an image that is read here", fix=fix)


def by_content(content: bytes) -> Kind | None:
    """The kind that the content says; None of what may be an image."""
    return next((kind for kind in _KINDS if kind.matches(content)), None)


def by_name(path: Path | None) -> Kind | None:
    """The kind that a file's name says, for content that says nothing."""
    suffix = path.suffix.lower() if path is not None else ""
    return next((kind for kind in (*_KINDS, HEIC, AVIF) if suffix in kind.suffixes), None)
