"""TOML files, read and checked: an error names the file and the field."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fico_export.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RecordT = TypeVar("RecordT", bound=BaseModel)


class Record(BaseModel):
    """A table whose keys are all known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def parse(text: str, place: str) -> dict[str, Any]:
    """The tables of a TOML text; `place` names it in errors.

    Raises:
        ConfigError: it is not TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{place} is not TOML: {error}", fix=f"correct {place}") from error


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", fix="give a TOML file that can be read") from error


def checked(record: type[RecordT], content: dict[str, Any], place: str) -> RecordT:
    """A table as a record; `place` names it in errors.

    Raises:
        ConfigError: a key is missing, unknown, or of a wrong value.
    """
    try:
        return record.model_validate(content)
    except ValidationError as error:
        # A misspelt key is missing under its right name too: the one that was written says more.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            what, fix = f"unknown key {field!r}", f"known keys: {', '.join(record.model_fields)}"
        elif first["type"] == "missing":
            what, fix = f"{field!r} is missing", f"add {field}"
        else:
            given = "" if isinstance(first["input"], dict) else f" (given: {first['input']!r})"
            what = f"{field + ': ' if field else ''}{first['msg'].removeprefix('Value error, ')}{given}"
            fix = f"correct {field or 'it'} in {place}"
        raise ConfigError(f"{place}: {what}", fix=fix) from error
