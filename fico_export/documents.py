"""JSON text, read within limits: whatever a stranger's file holds, an error names the file and how to fix it.

Python's own reader takes a number of a million digits (quadratic time), nesting until the interpreter's stack ends, half a
surrogate pair (which no file can be written with) and NaN. Every JSON file that this package reads goes through here.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from fico_export.errors import ConfigError

MAX_BYTES = 256 * 2**20
"""Size of the largest file that is read: ten times the largest tokenizer.json that is published."""

MAX_DEPTH = 64
"""Lists and objects within each other."""

_MAX_DIGITS = 19  # of a whole number: 64 bits
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read(path: Path, *, error: type[ConfigError] = ConfigError, fix: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        error: kind of the error to raise.
        fix: what to do where the file cannot be used.

    Raises:
        ConfigError: of the kind `error`: the file cannot be read, is too large, or is no JSON within the limits.
    """
    return parse(read_text(path, error=error, fix=fix), str(path), error=error, fix=fix)


def read_object(path: Path, *, error: type[ConfigError] = ConfigError, fix: str) -> dict[str, Any]:
    """The content of a JSON file that holds one object; arguments and errors as for `read`."""
    content = read(path, error=error, fix=fix)
    if not isinstance(content, dict):
        raise error(f"{path} holds a JSON {_kind(content)}, not an object", fix=fix)
    return content


def read_text(path: Path, *, error: type[ConfigError] = ConfigError, fix: str) -> str:
    """A UTF-8 text of at most `MAX_BYTES`; arguments and errors as for `read`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise error(f"{path} is larger than {MAX_BYTES >> 20} MiB", fix=fix)
        return content.decode("utf-8")
    except (OSError, ValueError) as failure:
        raise error(f"cannot read {path}: {failure}", fix=fix) from failure


def parse(text: str, place: str, *, error: type[ConfigError] = ConfigError, fix: str) -> Any:
    """The value that a JSON text stands for.

    Args:
        text: the JSON text.
        place: names the text in errors, such as its path.
        error: kind of the error to raise.
        fix: what to do where the text cannot be used.

    Raises:
        ConfigError: of the kind `error`: no JSON, deeper than `MAX_DEPTH`, a number beyond 64 bits or not finite, or half a
            surrogate pair.
    """
    try:
        content = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_constant)
        _check_depth(content)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as failure:
        raise error(f"{place} is damaged: nested deeper than {MAX_DEPTH}", fix=fix) from failure
    except UnicodeEncodeError as failure:
        raise error(f"{place} is damaged: a string holds half a surrogate pair", fix=fix) from failure
    except ValueError as failure:
        raise error(f"{place} is damaged: {failure}", fix=fix) from failure
    return content


def _check_depth(content: Any) -> None:
    level, depth = [content], 0
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        level = [
            value for holder in level for value in (holder.values() if isinstance(holder, dict) else holder)
        ]


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_DIGITS or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"the number {digits[:12]}… has more than 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:12]} is not finite")
    return number


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _kind(content: Any) -> str:
    names = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(content), "number")
