"""The options that name images, and how their values are read."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fico_export.cli.console import say
from fico_export.errors import ConfigError, InputError

if TYPE_CHECKING:
    from fico_export.runtime.inputs.deep_images import Range
    from fico_export.runtime.inputs.images import ImageSource

STDIN = "-"
_NAMES_SHOWN = 5

ImagesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        "-i",
        metavar="FILE|-",
        help="Image file, `-` for standard input, or a data URL; repeatable. With --each also a folder.",
        show_default=False,
    ),
]
VideosOption = Annotated[
    list[str] | None,
    typer.Option(
        "--video",
        metavar="FILE|FOLDER",
        help="Video file, animated image, or folder of frames, of a bundle that takes videos; repeatable.",
        show_default=False,
    ),
]
VideoFpsOption = Annotated[
    float | None,
    typer.Option(
        "--video-fps",
        metavar="N",
        help="Frames a second, for a model that is told when each was. Default: what the file says; 24 of a folder.",
        show_default=False,
    ),
]
ImageRangeOption = Annotated[
    str | None,
    typer.Option(
        "--image-range",
        metavar="LO,HI",
        help="Values that become black and white in grey images of over 8 bits. Default: each image's own.",
    ),
]


def image_range(text: str | None) -> Range | None:
    """The two numbers of --image-range.

    Raises:
        ConfigError: they are not two finite numbers, the lower first.
    """
    from fico_export.runtime.inputs.deep_images import check_range

    if text is None:
        return None
    try:
        return check_range(tuple(float(end) for end in text.split(",")))
    except (ValueError, ConfigError):
        raise ConfigError(
            f"--image-range is {text!r}, not two finite numbers with the lower first",
            fix="give the values that are to be black and white, such as --image-range 0,4096",
        ) from None


def opened(values: Sequence[str] | None) -> list[ImageSource]:
    """What --image names: files as they are given, and standard input as the bytes that it holds.

    Raises:
        InputError: standard input is given twice, or is a terminal.
    """
    values = values or []
    if values.count(STDIN) > 1:
        raise InputError("--image - is given twice, and standard input can be read once", fix="give it once")
    return [_standard_input() if value == STDIN else value for value in values]


def paths_of(sources: Sequence[ImageSource | None]) -> list[Path]:
    """The files among the sources, which a result must not replace."""
    from fico_export.runtime.inputs.image_sources import path_of

    return [path for source in sources if source is not None and (path := path_of(source)) is not None]


def without_folders(sources: Sequence[ImageSource]) -> list[ImageSource]:
    """The sources, none of which is a folder.

    Raises:
        InputError: one is.
    """
    for source in sources:
        if _is_folder(source):
            raise InputError(
                f"--image {str(source)!r} is a folder",
                fix="add --each to ask about every image in it, or give one image file in it",
            )
    return list(sources)


def with_folders_listed(sources: Sequence[ImageSource], *, recursive: bool) -> list[ImageSource]:
    """The sources, folders replaced by the images in them in the order of their names; what is left out is said.

    Raises:
        InputError: there is no image, or a folder cannot be read.
    """
    found: list[ImageSource] = []
    for source in sources:
        if _is_folder(source):
            found += _in_folder(Path(str(source)), recursive=recursive)
        else:
            found.append(source)
    if not found:
        raise InputError("--each, and no image is given", fix="give --image FOLDER, or several --image FILE")
    return found


@contextlib.contextmanager
def image_warnings_said() -> Iterator[None]:
    """Say the first warning about an image on stderr, for the others advise the same."""
    from fico_export.errors import ImageWarning

    said = False

    def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
        nonlocal said
        if not issubclass(category, ImageWarning):
            before(message, category, *rest)  # type: ignore[arg-type]
        elif not said:
            said = True
            say(f"warning: {message}")

    with warnings.catch_warnings():
        before = warnings.showwarning
        warnings.simplefilter("always", ImageWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _standard_input() -> ImageSource:
    from fico_export.runtime.inputs.image_sources import read_source

    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(
            "--image - reads standard input, which is a terminal", fix="pipe an image: … --image - < FILE"
        )
    content = read_source(sys.stdin.buffer)[1]
    assert isinstance(content, bytes)
    held = io.BytesIO(content)
    held.name = STDIN
    return held


def _is_folder(source: ImageSource) -> bool:
    from fico_export.runtime.inputs.image_sources import path_of

    try:
        path = path_of(source)
        return path is not None and path.is_dir()
    except (OSError, ValueError):
        return False


def _in_folder(folder: Path, *, recursive: bool) -> list[ImageSource]:
    from fico_export.runtime.inputs.image_kinds import looks_like_image

    try:
        every = sorted(folder.rglob("*") if recursive else folder.iterdir())
        files = [path for path in every if not _is_hidden(path, folder) and not path.is_dir()]
    except OSError as error:
        raise InputError(
            f"{str(folder)!r} cannot be read: {error.strerror}", fix="give a folder that you may read"
        ) from error
    images = [path for path in files if looks_like_image(path)]
    others = [path.name for path in files if path not in set(images)]
    if others:
        shown = ", ".join(repr(name) for name in others[:_NAMES_SHOWN])
        rest = f" and {len(others) - _NAMES_SHOWN} more" if len(others) > _NAMES_SHOWN else ""
        say(f"left out of {str(folder)!r}, for they are no images: {shown}{rest}")
    if not images:
        deeper = "" if recursive else ", or add --recursive for the folders in it"
        raise InputError(f"{str(folder)!r} has no image", fix=f"give a folder with images{deeper}")
    return [str(path) for path in images]


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
