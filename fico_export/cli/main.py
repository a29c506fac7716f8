"""Entry points: parses the command line, and turns errors into `error:`, `mend:` and an exit code."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click
import typer

from fico_export.cli import doctor, export, inspect, listing, run, verify
from fico_export.errors import ConfigError, FicoError

_HELP = """Vision-language models on small GPUs, with their visual tokens already reduced.

Export a LLaVA checkpoint with `fico export` (the same as `fico-export`), ask it with `fico run`, compare it with its
checkpoint with `fico verify`.
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
        "tomli",
    ),
}

app = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
app.command("export")(export.command)
app.command("run")(run.command)
app.command("verify")(verify.command)
app.command("inspect")(inspect.command)
app.command("list")(listing.command)
app.command("doctor")(doctor.command)

export_app = typer.Typer(add_completion=False, rich_markup_mode=None)
export_app.command()(export.command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`fico`."""
    sys.exit(invoke(app, "fico", sys.argv[1:] if arguments is None else list(arguments)))


def export_main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`fico-export`."""
    sys.exit(invoke(export_app, "fico-export", sys.argv[1:] if arguments is None else list(arguments)))


def invoke(application: typer.Typer, name: str, arguments: list[str]) -> int:
    """Run a command line; returns its exit code: 0 done, 1 it failed, 2 the request was wrong."""
    try:
        _exit_on_terminate()
        result: Any = typer.main.get_command(application)(arguments, prog_name=name, standalone_mode=False)
    except FicoError as error:
        return _report(error, arguments)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else name
        return _report(ConfigError(error.format_message(), mend=f"see `{where} --help`"), arguments)
    except (click.exceptions.Exit, SystemExit) as stop:
        code = getattr(stop, "exit_code", getattr(stop, "code", 0))
        return code if isinstance(code, int) else 0
    except ModuleNotFoundError as error:
        return _report(_missing(error), arguments)
    except (KeyboardInterrupt, click.Abort):
        print("interrupted; nothing half-written remains", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return result if isinstance(result, int) else 0


def _report(error: FicoError, arguments: list[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
    if "--json" in arguments:
        print(json.dumps({"error": error.what, "mend": error.mend, "exit_code": error.exit_code}))
    print(f"error: {error.what}\nmend:  {error.mend}", file=sys.stderr)
    return error.exit_code


def _missing(error: ModuleNotFoundError) -> FicoError:
    """A package that an extra would have brought; anything else is a bug and keeps its trace."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return ConfigError(
                f"this needs {package}, which is not installed", mend=f"pip install 'fico_export[{extra}]'"
            )
    raise error


def _exit_on_terminate() -> None:
    """Let `kill` clean up as Ctrl-C does."""
    stop: Callable[..., None] = _interrupt
    try:
        signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, where a test may call us
        return


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
