"""Types for what a stranger's manifest may say: numbers within bounds, names without control characters, paths that stay inside."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_FILES = 4096
MAX_DEPTH = 16
"""Folders within each other, and the file."""

_MAX_PATH, _MAX_PART_BYTES = 512, 200
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_UNSHOWN = {"Cc", "Cs", "Zl", "Zp"}
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text, if a terminal shows it as it is.

    Raises:
        ValueError: it holds a control character, or one that turns the direction of writing.
    """
    if any(unicodedata.category(character) in _UNSHOWN for character in text) or _TURNING.search(text):
        raise ValueError(f"{text[:40]!r} holds a control character")
    return text


def bundle_path(name: str) -> str:
    """The name, if it is a path that stays inside a bundle's folder on every system.

    Raises:
        ValueError: it is absolute, leads up, is empty, too long or deep, or holds what some system gives a meaning.
    """
    shown = repr(name[:60])
    if not name or len(name) > _MAX_PATH:
        raise ValueError(f"a path has 1 to {_MAX_PATH} characters, not {len(name)}")
    printable(name)
    if found := set('\\:*?"<>|') & set(name):
        raise ValueError(f"the path {shown} holds {min(found)!r}")
    parts = name.split("/")
    if len(parts) > MAX_DEPTH:
        raise ValueError(f"the path {shown} has more than {MAX_DEPTH} parts")
    for part in parts:
        if part in ("", ".", ".."):
            raise ValueError(f"the path {shown} leads out of the bundle, or is not written plainly")
        if len(part.encode()) > _MAX_PART_BYTES:
            raise ValueError(f"the path {shown} has a part of more than {_MAX_PART_BYTES} bytes")
        if part.startswith(("-", "~")) or part.endswith((" ", ".")) or _RESERVED.fullmatch(part):
            raise ValueError(f"the path {shown} has a part, {part!r}, that is no plain file name")
    return name


def require_distinct(paths: Iterable[str]) -> None:
    """Refuse paths that collide on some system: the same but for case or composition, or a file that is another's folder.

    Raises:
        ValueError: naming two that do.
    """
    files: dict[str, str] = {}
    for path in paths:
        key = _folded(path)
        if key in files:
            raise ValueError(f"{files[key]!r} and {path!r} are one file where case is ignored")
        files[key] = path
    for key, path in files.items():
        for parent in PurePosixPath(key).parents:
            if str(parent) in files:
                raise ValueError(f"{files[str(parent)]!r} is a file, and a folder for {path!r}")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


class Record(BaseModel):
    """A part of a manifest: it cannot be changed, and holds no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Label = Annotated[str, Field(max_length=255), AfterValidator(printable)]
"""A name that is shown."""

Text = Annotated[str, Field(max_length=4096)]
BundlePath = Annotated[str, AfterValidator(bundle_path)]
GraphName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_./:-]{0,199}$")]
Dtype = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Count = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Positive = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Layers = Annotated[int, Field(strict=True, ge=1, le=1024)]
Bytes = Annotated[int, Field(strict=True, ge=0, le=2**53)]
