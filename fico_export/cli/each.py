"""`fico run --each`: the same question about every image, one line of JSON for each."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import typer

from fico_export.cli.console import StageProgress, print_json, say
from fico_export.errors import ImageWarning, InputError

if TYPE_CHECKING:
    from fico_export.runtime.inputs.images import ImageSource

_FAILED = 1


def run_each(images: Sequence[ImageSource], ask: Callable[[ImageSource], dict[str, Any]]) -> None:
    """Ask about each image and print a line as soon as it is answered; an image that cannot be used does not end the run.

    Args:
        images: what to ask about.
        ask: what a line says of one image, beside its name.

    Raises:
        typer.Exit: with 1 at the end, where an image could not be used.
    """
    failed = 0
    with ExitStack() as stack:
        # On a terminal the lines themselves show how far it is, and a bar would run through them.
        progress = None if sys.stdout.isatty() else stack.enter_context(StageProgress())
        if progress is not None:
            progress.stage(f"{len(images)} images", parts=len(images))
        for image in images:
            line = _line(image, ask)
            failed += "error" in line
            print_json(line)
            if progress is not None:
                progress.advance(1)
    if failed:
        say(f"{failed} of {len(images)} images could not be used; their lines say why")
        raise typer.Exit(_FAILED)


def _line(image: ImageSource, ask: Callable[[ImageSource], dict[str, Any]]) -> dict[str, Any]:
    from fico_export.runtime.inputs.image_sources import label_of

    line: dict[str, Any] = {"image": label_of(image)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        try:
            line |= ask(image)
        except InputError as error:
            line |= {"error": error.what, "hint": error.fix}
    for warning in caught:
        warnings.warn(warning.message, stacklevel=2)
    if texts := [str(w.message) for w in caught if issubclass(w.category, ImageWarning)]:
        line["warnings"] = texts
    return line
