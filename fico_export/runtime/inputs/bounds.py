"""How far a chat template may run and grow: values are measured when they are made, and loops look at the clock.

A size is in characters, of a value with all that it holds: an element of a list counts `_ELEMENT`, as that is what it takes.
What is measured cannot be compared, printed or joined for long either.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import update_wrapper
from typing import Any

import jinja2
from jinja2.runtime import markup_join, str_join
from jinja2.utils import Namespace, generate_lorem_ipsum

MAX_SIZE = 2**22
"""The largest value, and the longest prompt."""

MAX_MADE = 2**26
"""All values of one rendering together."""

MAX_SECONDS = 2.0
"""Processor time of one rendering; a template takes milliseconds."""

_ELEMENT = 32
_MOST_SLOW = 20_000  # characters for what is quadratic, or searches by patterns
_SLOW = ("striptags", "urlize", "wordwrap", "unescape", "translate", "pprint")
_MOST_BITS = 2**17  # of a whole number: dividing takes the square
_MOST_PLACES = 1000  # that a number is rounded to
_WIDTH = re.compile(r"\d+")


class Exceeded(jinja2.TemplateError):
    """A template runs or grows beyond the bounds."""


class Spent:
    """What a rendering has taken."""

    def __init__(self) -> None:
        self._made = self._shown = 0
        self._ends = time.thread_time() + MAX_SECONDS

    def made(self, size: int) -> None:
        """Count a value."""
        self._made += size
        if self._made > MAX_MADE:
            raise Exceeded(f"its values have over {MAX_MADE:,} characters together")

    def output(self, piece: str) -> None:
        """Count a piece of the prompt."""
        self._shown += len(piece)
        if self._shown > MAX_SIZE:
            raise Exceeded(f"its prompt has over {MAX_SIZE:,} characters")
        self.tick()

    def tick(self) -> None:
        """Look at the clock."""
        if time.thread_time() > self._ends:
            raise Exceeded(f"it ran for over {MAX_SECONDS:.0f} s")


_spent: ContextVar[Spent] = ContextVar("spent")


@contextmanager
def within_bounds() -> Iterator[Spent]:
    """What runs inside has the whole of the bounds to itself."""
    token = _spent.set(Spent())
    try:
        yield _spent.get()
    finally:
        _spent.reset(token)


# ---- size


def size(value: Any) -> int:
    """Characters that a value takes with all that it holds, or a number above `MAX_SIZE`."""
    total, waiting = 0, [value]
    while waiting and total <= MAX_SIZE:
        value = waiting.pop()
        if isinstance(value, str | bytes):
            total += len(value) + 1
        elif isinstance(value, bool | float | None):
            total += 1
        elif isinstance(value, int):
            bits = value.bit_length()
            total += bits // 8 + 1 if bits <= _MOST_BITS else MAX_SIZE + 1
        elif isinstance(value, Mapping):
            total += 2 * _ELEMENT * len(value)
            waiting += [*value.keys(), *value.values()] if total <= MAX_SIZE else ()
        elif isinstance(value, list | tuple | set | frozenset):
            total += _ELEMENT * len(value) + 1
            waiting += value if total <= MAX_SIZE else ()
        elif isinstance(value, Namespace):
            waiting.append(object.__getattribute__(value, "_Namespace__attrs"))
            total += _ELEMENT
        else:
            total += _ELEMENT
    return total


def _require(amount: float) -> None:
    if amount > MAX_SIZE:
        raise Exceeded(f"a value of over {MAX_SIZE:,} characters")


def measured(value: Any) -> Any:
    """The value, counted; what makes values one by one counts each."""
    spent = _spent.get()
    spent.tick()
    _require(size(value))
    if isinstance(value, str | bytes):
        spent.made(len(value))
    elif isinstance(value, list | tuple | dict | set):
        spent.made(_ELEMENT * len(value))
    elif isinstance(value, Iterator):
        return (measured(each) for each in value)
    return value


# ---- what a template is made of


@jinja2.pass_context
def step(context: Any, written: int) -> str:
    """One round of a loop, or one call of a macro, whose own words have so many characters."""
    spent = _spent.get()
    spent.tick()
    spent.made(written)
    return ""


@jinja2.pass_context
def measured_value(context: Any, value: Any) -> Any:
    """A list, tuple or dictionary written in the template."""
    return measured(value)


@jinja2.pass_context
def joined(context: Any, values: list[Any]) -> Any:
    """The operator ``~``."""
    _require(size(values))
    return measured((markup_join if context.eval_ctx.autoescape else str_join)(values))


@jinja2.pass_context
def written(context: Any, value: Any) -> Any:
    """A value on its way into the text."""
    length = size(value)
    _require(length)
    _spent.get().made(length)
    return value


# ---- before a value is made that could be large at once


def before_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result is beyond the bounds, or takes long."""
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        _require(left.bit_length() * abs(right) * MAX_SIZE / _MOST_BITS)
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(times, int) and not isinstance(sequence, int | float):
                _require(size(sequence) * max(times, 0))
    elif operator == "%" and isinstance(left, str | bytes):
        _require_format(left, [right])


def before_call(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call of a method of Python's own whose result could be large at once."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, str | bytes | int | float | list | tuple | dict | range):
        _before(getattr(function, "__name__", ""), owner, args, kwargs)
    else:
        _spent.get().tick()


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses what would take it beyond the bounds, and whose value is counted."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    def bounded(*args: Any, **kwargs: Any) -> Any:
        owner, given = args[passed] if len(args) > passed else None, args[passed + 1 :]
        if name == "format":
            _require_format(owner, [given, kwargs])
        _before(name, owner, given, kwargs)
        return measured(function(*args, **kwargs))

    return update_wrapper(bounded, function)


def _before(name: str, owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    given = [*args, *kwargs.values()]
    length = size(owner)
    most = max((abs(each) if isinstance(each, int) else size(each) for each in given), default=0)
    _require(most)
    if name in _SLOW:
        _require(max(length, most) * MAX_SIZE / _MOST_SLOW)
    elif name == "round":
        _require(most * MAX_SIZE / _MOST_PLACES)
    elif name in ("indent", "expandtabs") and isinstance(owner, str):
        _require(length + (owner.count("\n") + owner.count("\t") + 1) * most)
    elif name == "replace" and isinstance(owner, str | bytes) and len(given) > 1:
        old, new = given[0], given[1]
        if isinstance(old, str | bytes) and isinstance(new, str | bytes):
            _require(len(owner) + owner.count(old) * len(new))  # type: ignore[arg-type]
    elif name == "join":
        parts = size(given[0]) if isinstance(owner, str | bytes) and given else length
        separator = size(owner) if isinstance(owner, str | bytes) else max(map(size, given), default=0)
        _require(parts / _ELEMENT * separator)


def _require_format(text: Any, values: list[Any]) -> None:
    """Of ``%`` and its like: each place of the text can hold the largest value, or be as wide as it says."""
    if not isinstance(text, str | bytes):
        return
    spelt = text if isinstance(text, str) else text.decode("latin-1")
    widths = sum(int(width) if len(width) < 10 else MAX_SIZE + 1 for width in _WIDTH.findall(spelt))
    numbers = [abs(n) for n in _numbers(values)] if "*" in spelt or "{" in spelt else []
    places = spelt.count("%") + spelt.count("{")
    _require(widths + places * size(values) + places * max(numbers, default=0))


def _numbers(values: Any) -> Iterator[int]:
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, int):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from _numbers(value)


def formatting(wrapped: Callable[..., str], method: Any) -> Callable[..., str]:
    """``str.format`` within bounds."""

    def bounded(*args: Any, **kwargs: Any) -> str:
        _require_format(method.__self__, [args, kwargs])
        return wrapped(*args, **kwargs)

    return update_wrapper(bounded, wrapped)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """The filter ``tojson``; jinja2's own escapes <, > and & for HTML, which a prompt is not."""
    _require(size(value) * (size(indent) if isinstance(indent, str) else abs(indent or 0) + 1))
    _require(size(value) / _ELEMENT * size(separators))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    """jinja2's own words that mean nothing, so many paragraphs."""
    _require(n * max * 10)
    return generate_lorem_ipsum(n, html, min, max)
