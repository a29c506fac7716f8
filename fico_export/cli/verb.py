"""What all verbs have in common: the options for their volume, and stdout that is kept for `--json`."""

from __future__ import annotations

import functools
import inspect
import platform
import time
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from fico_export import __version__
from fico_export.cli import logs
from fico_export.cli.output import detail, json_alone, put, settings
from fico_export.errors import ConfigError, FicoError

HELP_FLAGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


def _show_version(asked: bool) -> None:
    if asked:
        put(__version__)
        raise typer.Exit


VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show versions, steps as they begin, and libraries' logs.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show no progress and no notes, only warnings and errors.")
]
VersionOption = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
]
_COMMON = {"verbose": VerboseOption, "quiet": QuietOption, "version": VersionOption}


def verb(command: Callable[..., None]) -> Callable[..., None]:
    """A command with `--verbose`, `--quiet` and `--version` beside its own options, where it has none of that name."""
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters.values()
    parameters = [p.replace(annotation=hints[p.name]) for p in own]
    added = {name: option for name, option in _COMMON.items() if name not in hints}
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in added.items()
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        common = {name: given.pop(name) for name in added}
        set_volume(verbose=common.get("verbose", False), quiet=common.get("quiet", False))
        settings.json = given.get("as_json", False)
        detail(f"fico_export {__version__}, Python {platform.python_version()}, {platform.platform()}")
        began = time.perf_counter()
        with json_alone():
            try:
                command(**given)
            except BrokenPipeError as error:  # not stdout's: typer would end without a word
                raise FicoError(
                    "another program that this one talks to has ended", fix="--debug shows which"
                ) from error
        detail(f"done in {time.perf_counter() - began:.1f} s")

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return run


def set_volume(*, verbose: bool, quiet: bool) -> None:
    """Add what the flags before or after a verb say.

    Raises:
        ConfigError: they contradict each other.
    """
    settings.verbose |= verbose
    settings.quiet |= quiet
    if settings.verbose and settings.quiet:
        raise ConfigError("--verbose and --quiet contradict each other", fix="give one of them, or neither")
    logs.set_volume()
