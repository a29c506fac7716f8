"""Entry points of `fico` and `fico-export`.

Light, for a signal is heeded from here on: the commands and what they import come after.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from fico_export.cli import output, stop

if TYPE_CHECKING:
    from fico_export.cli.app import app, export_app, invoke

__all__ = ["app", "export_app", "export_main", "invoke", "main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`fico`; alone, it says what it can do."""
    _enter("app", "fico", arguments, alone=["--help"])


def export_main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`fico-export`."""
    _enter("export_app", "fico-export", arguments, alone=[])


def _enter(application: str, name: str, arguments: Sequence[str] | None, alone: list[str]) -> NoReturn:
    given = (sys.argv[1:] if arguments is None else list(arguments)) or alone
    output.begin(given)
    _open_streams()
    stop.listen(_end_at_once)
    try:
        from fico_export.cli import app
        from fico_export.cli.logs import take_over

        take_over()
        code = app.invoke(getattr(app, application), name, given)
        stop.done()
    except BaseException as error:
        stop.done()
        code = _failed_early(error)
    sys.exit(code)


def _failed_early(error: BaseException) -> int:
    """A signal or a broken installation, before the commands were there, or while an error was reported."""
    from fico_export.cli import failures

    return output.report(failures.explained(error))


def _open_streams() -> None:
    """A stream that the caller has closed goes nowhere; a terminal that cannot show a character shows another."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _end_at_once() -> None:
    if output.settings.json and not output.settings.printed:
        text = '{"error": "interrupted twice; ended at once", "hint": "run the same command again", "exit": 130}\n'
        os.write(1, text.encode())


def __getattr__(name: str) -> Any:
    """The applications, for those who call them in a process of their own."""
    if name in ("app", "export_app", "invoke"):
        from fico_export.cli import app

        return getattr(app, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
