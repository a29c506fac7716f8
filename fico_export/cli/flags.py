"""The options of an export as flags of a command: made from the record, which has their texts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from fico_export import reducers
from fico_export.cli.options import as_settings, whole_number
from fico_export.options import Option, options


def _methods(incomplete: str) -> list[str]:
    return [name for name in reducers.names() if name.startswith(incomplete)]


_COMPLETIONS = {"method": _methods}


def export_flags(
    *, planned: bool = False, **texts: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each option of an export; it is called with those that were given, as `given`.

    Args:
        planned: only those that `fico plan` takes.
        texts: lines of `--help` that this command says otherwise, by option.
    """
    taken = [option for option in options() if option.about.planned or not planned]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "given"
        ]
        flags = [_parameter(option, texts.get(option.name, option.about.text)) for option in taken]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            found = {option.name: _value(option, values.pop(option.name)) for option in taken}
            command({name: value for name, value in found.items() if value is not None}, **values)

        run.__signature__ = inspect.Signature(flags + own)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in flags + own} | {"return": None}
        return run

    return decorate


def _parameter(option: Option, text: str) -> inspect.Parameter:
    about, kind = option.about, option.type
    names = [option.flag, *([about.short] if about.short else [])]
    if kind is bool:
        names[0] += f"/--no-{option.flag[2:]}" if option.default else ""
        annotation: Any = bool | None
    else:
        annotation = (list[str] if _repeatable(option) else str) | None
    flag = typer.Option(
        *names,
        help=text,
        metavar=about.metavar or "|".join(about.choices) or None,
        autocompletion=_COMPLETIONS.get(option.name),
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, flag]
    )


def _value(option: Option, given: Any) -> Any:
    """What a flag says, None where it was not given.

    Raises:
        ConfigError: a number is none, or a setting has no value.
    """
    if option.type is int:
        return whole_number(given, option.flag)
    if option.name == "settings":
        return as_settings(given) if given else None
    if _repeatable(option):
        return tuple(given) if given else None
    return given


def _repeatable(option: Option) -> bool:
    return option.name == "settings" or get_origin(option.type) is tuple
