"""The files that an ONNX graph names for its weights, read off its protobuf without the package onnx, which devices lack.

Whatever order, repetition or nesting the fields come in, a parser that loads the graph finds no name that is not found here.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from fico_export.errors import BundleError

_FIX = "export or copy the bundle again"
_MAX_FIELDS = 5_000_000  # a graph of 100 layers has a twentieth of it
_MAX_DEPTH = 60
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Messages of onnx.proto that lead to tensors: field number → message within.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}


def external_files(graph: Path) -> set[str]:
    """The locations of external data in an ONNX file, as they are written there: relative to its folder, if it is honest.

    Raises:
        BundleError: it cannot be read, or is no protobuf.
    """
    try:
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return set(_Scan(content).locations("Model", 0, len(content), 0))
    except (OSError, ValueError) as error:
        raise BundleError(f"{graph} is no ONNX graph: {error}", fix=_FIX) from error


class _Scan:
    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._left = content, _MAX_FIELDS

    def locations(self, message: str, start: int, end: int, depth: int) -> Iterator[str]:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH}")
        if message == "Entry":
            yield from self._location(start, end)
            return
        within = _MESSAGES[message]
        for number, kind, begin, stop in self._fields(start, end):
            if kind == _BYTES and number in within:
                yield from self.locations(within[number], begin, stop, depth + 1)

    def _location(self, start: int, end: int) -> Iterator[str]:
        """The values of a pair whose key is `location`; of a field that is repeated, parsers differ in which they take."""
        keys: list[bytes] = []
        values: list[bytes] = []
        for number, kind, begin, stop in self._fields(start, end):
            if kind == _BYTES and number in (1, 2):
                (keys if number == 1 else values).append(self._content[begin:stop])
        if b"location" in keys:
            yield from (value.decode("utf-8") for value in values)

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, and the place of the content of each field."""
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"more than {_MAX_FIELDS} fields")
            tag, at = self._varint(at, end)
            if tag >> 32:  # parsers cut it to 32 bits, and would see another field
                raise ValueError("a field number beyond 32 bits")
            number, kind = tag >> 3, tag & 7
            begin = at
            if kind == _VARINT:
                _, at = self._varint(at, end)
            elif kind == _BYTES:
                size, begin = self._varint(at, end)
                at = begin + size
            elif kind in (_FIXED32, _FIXED64):
                at += 4 if kind == _FIXED32 else 8
            else:
                raise ValueError(f"a field of wire type {kind}")
            if at > end:
                raise ValueError("it ends early")
            yield number, kind, begin, at

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self._content[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
        raise ValueError("a number that does not end")
