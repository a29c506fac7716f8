"""Text and JSON of a log, such that an error names the line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fico_export import documents
from fico_export.errors import LogError

_NO_NUMBER = re.compile(r"[:,\[]\s*(-?(?:nan|inf|infinity)(?:\([^)]*\))?)\b", re.IGNORECASE)
_COMMA = re.compile(r"[:=]\s*-?\d+,\d+(?=\s*[,}\]]|\s*ms|\s*qps|\s*s\b)")
_SPACE = re.compile(r"[\s,]*")
_DECODER = documents.decoder()
_MAX_BYTES = 512 * 2**20
AGAIN = "run the tool again to its end, and give the file that it then writes"
COMMA = "run the tool with LC_ALL=C, which writes decimal points, not commas"


@dataclass(frozen=True)
class Text:
    """A log's text and where it lies."""

    path: Path
    text: str

    def line(self, at: int) -> int:
        """Number of the line of a character, from 1."""
        return self.text.count("\n", 0, at) + 1

    def fail(self, at: int, what: str, fix: str = AGAIN) -> NoReturn:
        """Refuse the log for what stands at a character.

        Raises:
            LogError: always.
        """
        raise LogError(f"{self.path}, line {self.line(at)}: {what}", fix=fix)

    def elements(self, start: int) -> Iterator[tuple[int, Any]]:
        """The elements of the JSON array whose bracket stands at `start`, each with its place.

        Raises:
            LogError: the array does not end, or is no JSON.
        """
        at = _space(self.text, start + 1)
        while not self.text.startswith("]", at):
            if at >= len(self.text):
                self.fail(at, "the file ends within a list: it is truncated")
            value, end = self.value(at)
            yield at, value
            at = _space(self.text, end)

    def value(self, at: int) -> tuple[Any, int]:
        """The JSON value at a place, and where it ends.

        Raises:
            LogError: it is none.
        """
        try:
            value, end = _DECODER.raw_decode(self.text, at)
            documents.check(value, self.text[at:end])
        except json.JSONDecodeError as error:
            line_start = self.text.rfind("\n", 0, error.pos) + 1
            line_end = self.text.find("\n", error.pos)
            line = self.text[line_start : line_end if line_end >= 0 else None]
            if match := _NO_NUMBER.search(line):
                self.fail(error.pos, f"{match[1]} is no time", "profile again: a time was not measured")
            if _COMMA.search(line):
                self.fail(error.pos, "numbers with decimal commas", COMMA)
            if error.pos >= len(self.text.rstrip()) or "Unterminated" in error.msg:
                self.fail(error.pos, "the file ends within a value: it is truncated")
            self.fail(error.pos, f"no JSON: {error.msg}")
        except RecursionError:
            self.fail(at, f"nested deeper than {documents.MAX_DEPTH}", AGAIN)
        except ValueError as error:
            self.fail(at, str(error), AGAIN)
        return value, end

    def number(self, at: int, record: dict[str, Any], *names: str) -> float:
        """A field of a record that begins at a place, by the first of its names that is there.

        Raises:
            LogError: it is missing, or no finite number of at least 0.
        """
        name = next((n for n in names if n in record), None)
        if name is None:
            self.fail(at, f"{names[0]!r} is missing")
        value = record[name]
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value < 0
        ):
            self.fail(at, f"{name} is {value!r:.60}, no time", "profile again: a time was not measured")
        return float(value)

    def name(self, at: int, record: dict[str, Any], field: str) -> str:
        """A text of a record.

        Raises:
            LogError: it is missing, or no text.
        """
        if not isinstance(record.get(field), str):
            self.fail(at, f"{field!r} is missing" if field not in record else f"{field} is no text")
        text: str = record[field]
        return text

    def record(self, at: int, value: Any) -> dict[str, Any]:
        """A value that must be a JSON object.

        Raises:
            LogError: it is not.
        """
        if not isinstance(value, dict):
            self.fail(at, f"{value!r:.60} where an object was expected")
        return value


def read(path: Path) -> Text:
    """A log.

    Raises:
        LogError: it cannot be read, or is empty.
    """
    fix = "give a log of trtexec or of ONNX Runtime"
    content = documents.read_bytes(path, most=_MAX_BYTES, error=LogError, fix=fix)
    try:
        # Windows' shells write what they redirect as UTF-16.
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise LogError(f"cannot read {path}: {error}", fix=fix) from error
    if not text.strip():
        raise LogError(f"{path}, line 1: the file is empty", fix=AGAIN)
    return Text(path, text)


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
