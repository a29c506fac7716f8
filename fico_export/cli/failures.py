"""What ended a command, as an error with a hint: of this package, of the system, of the installation, or a bug."""

from __future__ import annotations

import errno
import os

from fico_export import extras
from fico_export.cli import stop
from fico_export.errors import ConfigError, FicoError

# What the package itself needs, by the names that are imported.
_BASE = (
    "", "fico_export", "numpy", "PIL", "tokenizers", "jinja2", "markupsafe", "pydantic", "pydantic_core", "typer", "rich",
    "onnxruntime",
)  # fmt: skip
REPORT = "run it again with --debug, and report the trace with what `fico doctor` prints"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class StoppedError(FicoError):
    """A signal ended the command."""

    exit_code = stop.INTERRUPTED

    def __init__(self) -> None:
        super().__init__("interrupted; nothing half-written remains", fix="run the same command again")


def explained(error: BaseException) -> FicoError:
    """The error that a person is told of an exception, whatever raised it."""
    told = _explained(error)
    if told is not error:
        told.__cause__ = error  # --debug shows both
    return told


def _explained(error: BaseException) -> FicoError:
    if stop.came() or isinstance(error, KeyboardInterrupt):
        return StoppedError()  # also where a library has made an error of its own of the signal
    if isinstance(error, FicoError):
        return error
    if isinstance(error, SystemExit):
        return FicoError(f"ended by a library: {error.code}", fix=REPORT)
    if isinstance(error, ImportError):
        return _of_imports(error)
    if isinstance(error, MemoryError):
        return FicoError(
            "there is not enough memory",
            fix="stop other programs, use a smaller model or precision, or a machine with more memory",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error)
    what = " ".join(str(error).split())
    return FicoError(
        f"unexpected {type(error).__name__}{': ' + what if what else ''}; this is a bug of fico_export",
        fix=REPORT,
    )


def _of_imports(error: ImportError) -> FicoError:
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):  # it is there, and something that it needs is not
        what = " ".join(str(error).split())
        return FicoError(
            f"{package or 'a package'} cannot be imported: {what}",
            fix="install what it names, or the package again; `fico doctor` shows what is installed",
        )
    if package in _BASE:
        return FicoError(
            f"{error.name or 'a package'} is not installed, and fico_export needs it",
            fix="install fico_export again: pip install . in its folder",
        )
    return ConfigError(f"this needs {package}, which is not installed", fix=extras.install_module(package))


def _of_the_system(error: OSError) -> FicoError:
    what = error.strerror or os.strerror(error.errno or 0)
    where = f": {error.filename!s}" if error.filename is not None else ""
    if error.errno in _FULL:
        fix = "free some space, or use another disk"
    elif error.errno in _DENIED:
        fix = "let this user read and write there, or name another path"
    else:
        fix = "check that path and the disk it is on; --debug shows what was being done"
    return FicoError(f"{what}{where}", fix=fix)
