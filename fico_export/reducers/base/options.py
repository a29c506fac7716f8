"""What a method's options are, read from their fields: for lists, documents and errors.

A field's description says what the option is, `; default …` where the value None stands for something that depends on the
model, and in parentheses at its end where the default comes from.
"""

from __future__ import annotations

import re
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_DESCRIPTION = re.compile(r"(?P<says>.*?)(; default (?P<default>.*?))?( \((?P<source>[^()]*)\))?", re.DOTALL)


@dataclass(frozen=True)
class Option:
    """One option of a method, in words.

    Attributes:
        name: as in `--set name=value`.
        type: such as `int`, or the values it can have.
        range: such as `0 … 1` or `≥ 1`; empty where every value of the type will do.
        default: its value, or what stands in where it depends on the model.
        says: what it is.
        source: where the default comes from.
    """

    name: str
    type: str
    range: str
    default: str
    says: str
    source: str

    def __str__(self) -> str:
        limits = f" {self.range}" if self.range else ""
        source = f" ({self.source})" if self.source else ""
        return f"{self.type}{limits}, default {self.default}: {self.says}{source}"


def describe(options: type[BaseModel]) -> list[Option]:
    """All options of a class, in its order."""
    return [_option(name, field) for name, field in options.model_fields.items()]


def _option(name: str, field: FieldInfo) -> Option:
    parts = _DESCRIPTION.fullmatch(field.description or "")
    assert parts is not None
    default = parts["default"] or _text(field.default)
    return Option(name, _type(field.annotation), _range(field), default, parts["says"], parts["source"] or "")


def _type(annotation: Any) -> str:
    """`int`, `int | None` → int; a Literal → its values."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_type(a) for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) in (tuple, list):
        return f"list of {_type(get_args(annotation)[0])}"
    return str(getattr(annotation, "__name__", annotation))


def _range(field: FieldInfo) -> str:
    limits = {name: getattr(m, name) for m in field.metadata for name in _SIGNS if hasattr(m, name)}
    if limits.keys() == {"ge", "le"}:
        return f"{_text(limits['ge'])} … {_text(limits['le'])}"
    return ", ".join(f"{_SIGNS[name]} {_text(limit)}" for name, limit in limits.items())


def _text(value: Any) -> str:
    """A value as it is written after `=`."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
