"""TOML files, read and checked: an error names the file and the field."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from fico_export import documents
from fico_export.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 2**20
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
RecordT = TypeVar("RecordT")


class Record(BaseModel):
    """A table whose keys are all known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def parse(text: str, place: str) -> dict[str, Any]:
    """The tables of a TOML text; `place` names it in errors.

    Raises:
        ConfigError: it is not TOML, or not within the limits of `documents`.
    """
    fix = f"correct {place}"
    try:
        content = tomllib.loads(text)
        documents.check(content)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{place} is not TOML: {error}", fix=fix) from error
    except (ValueError, RecursionError) as error:
        why = str(error)
        if isinstance(error, RecursionError):
            why = f"nested deeper than {documents.MAX_DEPTH}"
        elif "digits; use sys" in why:  # Python's own limit, of 4300
            why = f"a whole number has more than {documents.MAX_DIGITS} digits"
        raise ConfigError(f"{place} cannot be read: {why}", fix=fix) from error
    return content


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    fix = "give a TOML file that can be read"
    content = documents.read_bytes(path, most=_MAX_BYTES, fix=fix)
    try:
        return parse(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: {error}", fix=fix) from error


def checked(
    record: type[RecordT],
    content: Any,
    place: str,
    *,
    error: type[ConfigError] = ConfigError,
    fix: str | None = None,
) -> RecordT:
    """A table as a record.

    Args:
        record: what it must be, a model of pydantic's or a dataclass.
        content: the table.
        place: names it in errors.
        error: kind of the error to raise.
        fix: what to do about it; to correct the key, by default.

    Raises:
        ConfigError: of the kind `error`: a key is missing, unknown, or of a wrong value.
    """
    try:
        return TypeAdapter(record).validate_python(content)
    except ValidationError as failure:
        # A misspelt key is missing under its right name too: the one that was written says more.
        first = min(failure.errors(), key=lambda e: e["type"] not in _UNKNOWN)
        field = ".".join(map(str, first["loc"]))
        if first["type"] in _UNKNOWN:
            what, way = f"unknown key {field!r}", f"known keys: {', '.join(_fields(record))}"
        elif first["type"] == "missing":
            what, way = f"{field!r} is missing", f"add {field}"
        else:
            given = "" if isinstance(first["input"], dict) else f" (given: {_short(first['input'])})"
            says = "Input should be an object" if first["type"] == "model_type" else first["msg"]
            what = f"{field + ': ' if field else ''}{says.removeprefix('Value error, ')}{given}"
            way = f"correct {field or 'it'} in {place}"
        raise error(f"{place}: {what}", fix=fix or way) from failure


def _fields(record: type[Any]) -> list[str]:
    if issubclass(record, BaseModel):
        return list(record.model_fields)
    return [field.name for field in dataclasses.fields(record)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
