"""Entry points: parses the command line, and turns errors into `error:`, `hint:` and an exit code."""

from __future__ import annotations

import io
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from fico_export import __version__
from fico_export.cli import (
    build,
    deploy,
    doctor,
    export,
    inspect,
    lint,
    listing,
    pack,
    plan,
    profile,
    report,
    run,
    show,
    unpack,
    verify,
)
from fico_export.cli.console import print_json, say
from fico_export.cli.images import image_warnings_said
from fico_export.errors import ConfigError, FicoError

_HELP = """Vision-language models on small GPUs, with their visual tokens already reduced.

Export a LLaVA checkpoint with `fico export` (the same as `fico-export`), ask it with `fico run`, compare it with its
checkpoint with `fico verify`, make engines of it with `fico build`.
"""
_EXTRAS = {
    "export": (
        "torch",
        "transformers",
        "onnx",
        "onnxscript",
        "onnx_ir",
        "safetensors",
        "huggingface_hub",
    ),
}

app = typer.Typer(help=_HELP, add_completion=False, rich_markup_mode=None)
app.command("export")(export.command)
app.command("build")(build.command)
app.command("run")(run.command)
app.command("show")(show.command)
app.command("report")(report.command)
app.command("verify")(verify.command)
app.command("profile")(profile.command)
app.command("plan")(plan.command)
app.command("inspect")(inspect.command)
app.command("lint")(lint.command)
app.command("list")(listing.command)
app.command("doctor")(doctor.command)
app.command("pack")(pack.command)
app.command("unpack")(unpack.command)
app.command("deploy")(deploy.command)


def _show_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _fico(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    pass


export_app = typer.Typer(add_completion=False, rich_markup_mode=None)
export_app.command()(export.command)


# typer has used click's classes and, later, a copy of its own: this is the one that it raises.
_USAGE_ERROR: Any = typer.BadParameter.__base__
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`fico`; alone, it says what it can do."""
    _enter(app, "fico", arguments, alone=["--help"])


def export_main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`fico-export`."""
    _enter(export_app, "fico-export", arguments, alone=[])


def invoke(application: typer.Typer, name: str, arguments: list[str]) -> int:
    """Run a command line.

    Returns:
        Its exit code: 0 done, 1 it failed, 2 the request was wrong, 130 interrupted.
    """
    try:
        with image_warnings_said():
            result: Any = typer.main.get_command(application)(
                arguments, prog_name=name, standalone_mode=False
            )
    except FicoError as error:
        return _report(error, arguments)
    except _USAGE_ERROR as error:
        where = error.ctx.command_path if error.ctx else name
        what = " ".join(error.format_message().split())
        return _report(ConfigError(what, fix=f"see `{where} --help`"), arguments)
    except ModuleNotFoundError as error:
        return _report(_missing(error), arguments)
    except (KeyboardInterrupt, typer.Abort):
        result = _INTERRUPTED
    except SystemExit as stop:  # the reader of a pipe left
        result = stop.code
    if result == _INTERRUPTED:
        say("interrupted; nothing half-written remains")
    return result if isinstance(result, int) else 0


def _enter(
    application: typer.Typer, name: str, arguments: Sequence[str] | None, alone: list[str]
) -> NoReturn:
    signal.signal(signal.SIGTERM, _interrupt)  # let `kill` clean up as Ctrl-C does
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character shows another
    given = sys.argv[1:] if arguments is None else list(arguments)
    sys.exit(invoke(application, name, given or alone))


def _report(error: FicoError, arguments: list[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
    if "--json" in arguments:
        print_json({"error": error.what, "hint": error.fix, "exit": error.exit_code})
    say(f"error: {error.what}\nhint:  {error.fix}")
    return error.exit_code


def _missing(error: ModuleNotFoundError) -> FicoError:
    """A package that an extra would have brought; anything else is a bug and keeps its trace."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return ConfigError(
                f"this needs {package}, which is not installed", fix=f"pip install 'fico_export[{extra}]'"
            )
    raise error


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
