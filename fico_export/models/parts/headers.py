"""The header of a safetensors file: which tensors it holds, and where each lies.

Layout: https://huggingface.co/docs/safetensors#format. The library checks it (sizes, overlaps, holes) and does not tell where a
tensor lies, so the header is read here a second time, within limits of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fico_export import documents
from fico_export.errors import CheckpointError

_MAX_HEADER = 32 * 2**20  # bytes; a public checkpoint's longest shard has a tenth of it
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Stored:
    """A tensor of a file.

    Attributes:
        file: where it lies.
        key: its name there.
        dtype: its dtype in safetensors' words, such as F16.
        shape: its shape.
        offset: its first byte in the file.
        nbytes: how many bytes it takes.
    """

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(file: Path) -> list[Stored]:
    """The tensors of a file, none of them read.

    Raises:
        CheckpointError: the file is truncated, damaged, or no safetensors file.
    """
    try:
        places = _places(file)
        with safe_open(file, framework="pt") as opened:
            entries = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - no dict, and iterable by keys() only
            return [
                Stored(file, key, entry.get_dtype(), tuple(entry.get_shape()), *places[key])
                for key, entry in entries.items()
            ]
    except (SafetensorError, OSError) as error:
        raise _damaged(file, str(error)) from error


def _places(file: Path) -> dict[str, tuple[int, int]]:
    """Tensor name → its first byte in the file, and its number of bytes."""
    with file.open("rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if _LFS.startswith(start) and len(start) == 8:
            raise CheckpointError(
                f"{file.name} is a pointer of Git LFS: the weights themselves were not downloaded",
                fix=f"git -C {file.parent} lfs pull",
            )
        if len(start) < 8 or length > min(_MAX_HEADER, file.stat().st_size - 8):
            raise _damaged(file, f"a header of {length:,} bytes in a file of {file.stat().st_size:,}")
        text = opened.read(length)
    fix = _again(file)
    try:
        header = documents.parse(text.decode(), f"the header of {file.name}", error=CheckpointError, fix=fix)
    except UnicodeDecodeError as error:
        raise _damaged(file, "its header is no UTF-8 text") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    return {key: _place(file, entry, 8 + length) for key, entry in header.items() if key != "__metadata__"}


def _place(file: Path, entry: Any, base: int) -> tuple[int, int]:
    try:
        begin, end = entry["data_offsets"]
        return base + int(begin), int(end) - int(begin)
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(file, "its header does not say where each tensor lies") from error


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file.name} is truncated or damaged: {why}", fix=_again(file))


def _again(file: Path) -> str:
    return f"download it again into {file.parent}"
