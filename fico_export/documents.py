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

MAX_BYTES = 64 * 2**20
"""Size of the largest file that is read: twice the largest tokenizer.json that is published. In memory it takes 2 GB at most."""

MAX_DEPTH = 64
"""Lists and objects within each other."""

MAX_DIGITS = 40
"""Digits of a whole number: transformers writes 1000000000000000019884624838656 for "no limit"."""

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
    return parse_object(read_text(path, error=error, fix=fix), str(path), error=error, fix=fix)


def read_text(path: Path, *, error: type[ConfigError] = ConfigError, fix: str) -> str:
    """A UTF-8 text of at most `MAX_BYTES`; arguments and errors as for `read`."""
    try:
        return read_bytes(path, error=error, fix=fix).decode("utf-8")
    except UnicodeDecodeError as failure:
        raise error(f"cannot read {path}: it is no UTF-8: {failure}", fix=fix) from failure


def read_bytes(
    path: Path, *, most: int = MAX_BYTES, error: type[ConfigError] = ConfigError, fix: str
) -> bytes:
    """The content of a file of at most `most` bytes; other arguments and errors as for `read`."""
    try:
        # A pipe or a device in a folder of files would be waited for; what a shell hands over lies in /dev or /proc.
        if path.exists() and not path.is_file() and path.parts[1:2] not in (("dev",), ("proc",)):
            raise error(
                f"cannot read {path}: it is {'a folder' if path.is_dir() else 'no plain file'}", fix=fix
            )
        with path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as failure:
        raise error(f"cannot read {path}: {failure}", fix=fix) from failure
    if len(content) > most:
        raise error(f"{path} is larger than {most >> 20} MiB", fix=fix)
    return content


def parse(text: str, place: str, *, error: type[ConfigError] = ConfigError, fix: str) -> Any:
    """The value that a JSON text stands for.

    Args:
        text: the JSON text.
        place: names the text in errors, such as its path.
        error: kind of the error to raise.
        fix: what to do where the text cannot be used.

    Raises:
        ConfigError: of the kind `error`: no JSON, deeper than `MAX_DEPTH`, a number of more than `MAX_DIGITS` digits or not
            finite, or half a surrogate pair.
    """
    try:
        content = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_constant)
        check(content, text)
    except RecursionError as failure:
        raise error(f"{place} is damaged: nested deeper than {MAX_DEPTH}", fix=fix) from failure
    except ValueError as failure:
        raise error(f"{place} is damaged: {failure}", fix=fix) from failure
    return content


def parse_object(
    text: str, place: str, *, error: type[ConfigError] = ConfigError, fix: str
) -> dict[str, Any]:
    """The object that a JSON text stands for; arguments and errors as for `parse`."""
    content = parse(text, place, error=error, fix=fix)
    if not isinstance(content, dict):
        raise error(f"{place} holds a JSON {kind(content)}, not an object", fix=fix)
    return content


def decoder() -> json.JSONDecoder:
    """For a JSON value within another text: whole numbers are within the limits; the rest is for `check`.

    Not strict: TensorRT writes the bytes between the names of fused nodes as they are.
    """
    return json.JSONDecoder(strict=False, parse_int=_whole)


def check(content: Any, text: str = "") -> None:
    """Look through the lists and objects within each other, and the whole numbers in them; `text` is the JSON that it was.

    Raises:
        ValueError: they are deeper than `MAX_DEPTH`, a number has more than `MAX_DIGITS` digits, or a string half a surrogate
            pair.
    """
    level, depth = [content], 0
    while level:
        if any(isinstance(value, int) and abs(value) >= 10**MAX_DIGITS for value in level):
            raise ValueError(f"a whole number has more than {MAX_DIGITS} digits")
        holders = [value for value in level if isinstance(value, dict | list)]
        depth += 1
        if holders and depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        level = [
            value for holder in holders for value in (holder.values() if isinstance(holder, dict) else holder)
        ]
    if _SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a string holds half a surrogate pair") from None


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"the number {digits[:12]}… has more than {MAX_DIGITS} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:12]} is not finite")
    return number


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def kind(content: Any) -> str:
    """What a value of a JSON text is called."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(content), "number")
