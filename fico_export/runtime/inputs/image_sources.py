"""Where an image comes from: a file, bytes, a stream, a data URL, an array, an open image; read within a limit on bytes."""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import shlex
import stat
import urllib.parse
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.errors import InputError

ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | npt.NDArray[Any] | Image.Image
)
"""A path, a data URL, the bytes of a file, a binary file object, an array [H, W, 3], or an open image."""

MAX_BYTES = 400_000_000
"""Bytes of the largest image file that is read; 100 million RGB pixels without compression have 300 MB."""

_LONGEST_NAME = 200
_DATA_HEAD = 40
_CHUNK_BYTES = 1 << 20
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(/{1,2})", re.IGNORECASE)
_CURL = ("http", "https", "ftp", "ftps")
_VIDEO = ("rtsp", "rtsps", "rtmp", "srt", "udp")


def read_source(source: ImageSource) -> tuple[str, bytes | npt.NDArray[Any] | Image.Image]:
    """Read a source within `MAX_BYTES`.

    Returns:
        What to call it in a message, and its content: a file's bytes, or the array or image that it is.

    Raises:
        InputError: an address, a device, missing, empty, too large, or nothing that an image can be.
    """
    name = name_of(source)
    if isinstance(source, Image.Image | np.ndarray):
        return name, source
    if isinstance(source, str | os.PathLike):
        text = _text(source)
        content = _decode(text, name) if _is_data_url(text) else _read_file(text, name)
    elif isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
    elif _is_stream(source):
        content = _read_stream(source, name)
    else:
        raise InputError(
            f"an image cannot be a {type(source).__name__}",
            fix="give a path, bytes, a binary file object, a NumPy array, or a PIL.Image.Image",
        )
    if not content:
        raise InputError(f"{name} has no bytes", fix="give the bytes of a whole image file")
    if len(content) > MAX_BYTES:
        raise _too_many_bytes(name)
    return name, content


def name_of(source: object) -> str:
    """What to call a source in a message: short, printable, and never the data of a data URL."""
    if isinstance(source, Image.Image):
        return "the image given"
    if isinstance(source, np.ndarray):
        return "the array given"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the image given ({len(source):,} bytes)"
    if isinstance(source, str | os.PathLike):
        return shortened(_text(source))
    label = getattr(source, "name", None)
    return shortened(label) if isinstance(label, str) else "the file object given"


def shortened(text: str) -> str:
    """A path or an address in quotes; of a data URL its head, of what is very long both ends, and how long it is."""
    if _is_data_url(text):
        return f"{text[:_DATA_HEAD] + '…'!r} ({len(text):,} characters)"
    if len(text) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        return f"{text[:half] + '…' + text[-half:]!r} ({len(text):,} characters)"
    return repr(text)


def beside(folder: Path, text: str) -> str:
    """What a file in `folder` names: a path relative to it, or an address or data URL as it is."""
    return text if _is_data_url(text) or _SCHEME.match(text) else str(folder / text)


def label_of(source: ImageSource) -> str:
    """A source as a result names it: a path as it was given, anything else as in messages."""
    if isinstance(source, str | os.PathLike):
        text = _text(source)
        return f"{text[:_DATA_HEAD]}… ({len(text):,} characters)" if _is_data_url(text) else text
    label = getattr(source, "name", None)
    return label if isinstance(label, str) else name_of(source)


def path_of(source: ImageSource) -> Path | None:
    """The file that a source is; None where it is none."""
    if isinstance(source, str | os.PathLike) and not _is_data_url(text := _text(source)):
        return Path(text)
    return None


def _text(source: str | os.PathLike[str]) -> str:
    return os.fsdecode(os.fspath(source))


def _is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def _is_stream(source: object) -> TypeGuard[BinaryIO]:
    return callable(getattr(source, "read", None))


def _decode(url: str, name: str) -> bytes:
    """The bytes of a base64 data URL."""
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise InputError(f"{name} is not base64", fix="write it as data:image/png;base64,… or give a file")
    if len(data) > MAX_BYTES * 4 // 3 + 4:
        raise _too_many_bytes(name)
    digits = "".join(urllib.parse.unquote(data).split()).rstrip("=")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"{name} is not base64: {error}", fix="encode the whole file: base64 -w0 FILE"
        ) from error


def _read_stream(stream: BinaryIO, name: str) -> bytes:
    """What is left of a stream; one that can seek is left where it was."""
    try:
        start = stream.tell() if getattr(stream, "seekable", bool)() else None
        content = _read_bounded(stream, name)
        if start is not None:
            stream.seek(start)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name} cannot be read: {error}", fix="give it open, for reading in binary"
        ) from error
    if not content and start:
        raise InputError(f"{name} is at its end: no bytes are left to read", fix="seek(0) before you give it")
    return content


def _read_bounded(stream: BinaryIO, name: str) -> bytes:
    content = bytearray()
    while chunk := stream.read(_CHUNK_BYTES):
        if not isinstance(chunk, bytes):
            raise InputError(f"{name} was opened as text", fix='open it as bytes: open(path, "rb")')
        content += chunk
        if len(content) > MAX_BYTES:
            raise _too_many_bytes(name)
    return bytes(content)


def _read_file(text: str, name: str) -> bytes:
    path = Path(text)
    try:
        if (scheme := _SCHEME.match(text)) and not _exists(path):
            _refuse_address(text, scheme)
        _require_file(path.stat(), path, name)
        # Between the two looks a file may become a FIFO, which would be waited for.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            _require_file(os.fstat(descriptor), path, name)
            return _read_bounded(file, name)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise _missing(text, name) from error
        raise InputError(
            f"{name} cannot be opened: {error.strerror if isinstance(error, OSError) else error}",
            fix="give the path of a file that you may read",
        ) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for any file
        return False


def _missing(text: str, name: str) -> InputError:
    if len(text) > _LONGEST_NAME and re.fullmatch(r"[A-Za-z0-9+/=\s]+", text):
        return InputError(
            f"there is no file {name}", fix="write data:image/png;base64, before an image in base64"
        )
    return InputError(f"there is no file {name}", fix=f"give a path that exists from {Path.cwd()}")


def _require_file(found: os.stat_result, path: Path, name: str) -> None:
    mode = found.st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{name} is a folder", fix="give one image file in it")
    if stat.S_ISCHR(mode) and path.name.startswith("video"):
        raise InputError(
            f"{name} is a camera, not a file",
            fix=f"take a frame first: ffmpeg -i {shlex.quote(str(path))} -frames:v 1 frame.png",
        )
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise InputError(
            f"{name} is {kind}, not a file", fix="give a file, or send its bytes to `fico run … --image -`"
        )
    if found.st_size == 0:
        raise InputError(f"{name} has no bytes", fix="copy or download the image again")
    if found.st_size > MAX_BYTES:
        raise _too_many_bytes(name)


def _refuse_address(text: str, scheme: re.Match[str]) -> NoReturn:
    """Say how to fetch an address, for nothing is ever downloaded."""
    kind = scheme[1].lower()
    address = f"{scheme[1]}://{text[scheme.end() :]}"  # pathlib takes a slash away
    if kind == "file":
        path = urllib.parse.unquote(urllib.parse.urlsplit(f"file://{text[scheme.end() :]}").path)
        raise InputError(
            f"{shortened(text)} is an address, not a path", fix=f"give the path: {shortened(path)}"
        )
    quoted = shlex.quote(address) if address.isprintable() and len(address) < 4 * _LONGEST_NAME else "URL"
    if kind in _CURL:
        fetch = f"curl -Lo image {quoted}; then give the file: image"
        last = urllib.parse.urlsplit(address).path.rpartition("/")[2]
        if quoted != "URL" and re.fullmatch(r"[\w.+-]+", last):
            fetch = f"curl -LO {quoted}; then give the file: {last}"
    elif kind in _VIDEO:
        fetch = f"ffmpeg -i {quoted} -frames:v 1 frame.png; then give the file: frame.png"
    elif kind == "s3":
        fetch = f"aws s3 cp {quoted} . ; then give the file"
    else:
        fetch = "with the tool that reads such addresses; then give the file"
    raise InputError(
        f"{shortened(address)} is an address, not a file: nothing is downloaded here",
        fix=f"download it first: {fetch}",
    )


def _too_many_bytes(name: str) -> InputError:
    return InputError(
        f"{name} has over {MAX_BYTES:,} bytes",
        fix="save it smaller, as JPEG or PNG; the tower sees far fewer pixels",
    )
