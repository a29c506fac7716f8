"""The commands: which verbs there are, and what a command line comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from fico_export.cli import (
    build,
    chat,
    deploy,
    doctor,
    export,
    failures,
    inspect,
    lint,
    listing,
    output,
    pack,
    plan,
    profile,
    report,
    run,
    show,
    stop,
    unpack,
    verify,
)
from fico_export.cli.images import image_warnings_said
from fico_export.cli.options import DebugOption
from fico_export.cli.verb import HELP_FLAGS, QuietOption, VerboseOption, VersionOption, set_volume, verb
from fico_export.errors import ConfigError

_HELP = """Vision-language models on small GPUs, with their visual tokens already reduced.

Export a LLaVA checkpoint with `fico export` (the same as `fico-export`), ask it with `fico run`, compare it with its
checkpoint with `fico verify`, make engines of it with `fico build`.

Exit codes: 0 done, 1 it failed, 2 the request was wrong, 130 interrupted. With --json an error is an object on stdout:
{error, hint, exit}.
"""
_VERBS: dict[str, Callable[..., None]] = {
    "export": export.command,
    "build": build.command,
    "run": run.command,
    "chat": chat.command,
    "show": show.command,
    "report": report.command,
    "verify": verify.command,
    "profile": profile.command,
    "plan": plan.command,
    "inspect": inspect.command,
    "lint": lint.command,
    "list": listing.command,
    "doctor": doctor.command,
    "pack": pack.command,
    "unpack": unpack.command,
    "deploy": deploy.command,
}

app = typer.Typer(help=_HELP, rich_markup_mode=None, context_settings=HELP_FLAGS)
for _name, _command in _VERBS.items():
    app.command(_name)(verb(_command))
export_app = typer.Typer(rich_markup_mode=None, context_settings=HELP_FLAGS)
export_app.command(context_settings=HELP_FLAGS)(verb(export.command))


@app.callback()
def _fico(
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    version: VersionOption = False,
) -> None:
    set_volume(verbose=verbose, quiet=quiet)


# typer has used click's classes and, later, a copy of its own: this is the one that it raises.
_USAGE_ERROR: Any = typer.BadParameter.__base__


def invoke(application: typer.Typer, name: str, arguments: list[str]) -> int:
    """Run a command line.

    Returns:
        Its exit code: 0 done, 1 it failed, 2 the request was wrong, 130 interrupted.
    """
    output.begin(arguments)
    try:
        code = _run(application, name, arguments)
        output.finish()
    except BaseException as error:  # whatever it is, it is told and not thrown at the user
        if isinstance(error, SystemExit) and isinstance(error.code, int) and not stop.came():
            return error.code  # the reader of a pipe left
        return output.report(failures.explained(error))
    return code


def _run(application: typer.Typer, name: str, arguments: list[str]) -> int:
    command: Any = typer.main.get_command(application)
    try:
        with image_warnings_said():
            result = command(arguments, prog_name=name, standalone_mode=False)
    except _USAGE_ERROR as error:
        where = error.ctx.command_path if error.ctx else name
        what = " ".join(error.format_message().split())
        raise ConfigError(what, fix=f"see `{where} --help`") from error
    except typer.Abort as abort:  # what typer makes of an end of file that any library met
        raise abort.__cause__ or KeyboardInterrupt from None
    if result == stop.INTERRUPTED:  # what typer makes of KeyboardInterrupt
        raise KeyboardInterrupt
    stop.check()
    return result if isinstance(result, int) else 0
