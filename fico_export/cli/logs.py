"""What libraries log, warn of or raise in the background, in the form and at the volume of a command's own notes."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from typing import Any

from fico_export.cli import output


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "warning" if record.levelno >= logging.WARNING else record.name
        output.complain(f"{level}: {record.getMessage().rstrip()}")


def take_over() -> None:
    """Show logs and warnings as notes; an exception that nobody can catch is shown with `--debug` alone."""
    logging.getLogger().addHandler(_Handler())
    logging.captureWarnings(True)
    sys.unraisablehook = _background
    threading.excepthook = _background


def set_volume() -> None:
    """With `--verbose` notes too, else warnings and errors."""
    logging.getLogger().setLevel(logging.INFO if output.settings.verbose else logging.WARNING)


def _background(failed: Any) -> None:
    if output.settings.debug and failed.exc_value is not None:
        output.complain("".join(traceback.format_exception(failed.exc_value)).rstrip())
