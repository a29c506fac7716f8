"""A video to some of its frames, evenly spaced: an animated image, a folder, images, or a video file."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fico_export import extras
from fico_export.errors import ConfigError, InputError
from fico_export.runtime.inputs.image_bounds import MAX_PIXELS
from fico_export.runtime.inputs.image_decode import decode_frames
from fico_export.runtime.inputs.image_sources import name_of, read_source
from fico_export.runtime.inputs.images import Range, Video, load_image

USUAL_FPS = 24.0
"""Frames a second where nothing says how many, as transformers has it."""

MAX_FRAMES = 100_000
"""Frames of the longest video: almost an hour."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".avif")
"""Of the files that a folder's frames are."""

_VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp")


class Frames(NamedTuple):
    """Frames of a video, upright and as RGB, and how many seconds after its first each comes."""

    images: list[Image.Image]
    seconds: list[float]


Choose = Callable[[int], list[int]]
"""Number of frames → which are taken."""


def frames_of(video: Video, choose: Choose, image_range: Range | None = None) -> Frames:
    """Some frames of a video.

    Args:
        video: the video.
        choose: which; raises InputError where there are too few.
        image_range: as of `load_image`.

    Raises:
        InputError: it cannot be read, or has too few frames; or its frames a second are no number above 0.
        ConfigError: it is a video file, and PyAV is not installed.
    """
    if video.fps is not None and not (isinstance(video.fps, Real) and 0 < video.fps < math.inf):
        raise InputError(f"{video.fps!r:.40} frames a second", fix="give a number above 0, such as 24")
    found, fps = _read(video.source, choose, image_range)
    fps = float(video.fps or fps or USUAL_FPS)
    return Frames(list(found.values()), [number / fps for number in found])


def _read(
    source: Any, choose: Choose, image_range: Range | None
) -> tuple[dict[int, Image.Image], float | None]:
    """The frames by their numbers, and how many there are in a second, where that is known."""
    if isinstance(source, str | os.PathLike) and (folder := Path(source)).is_dir():
        source = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not source:
            raise InputError(
                f"{name_of(folder)} has no images", fix=f"put frames there: {', '.join(SUFFIXES)}"
            )
    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        return {i: load_image(source[i], image_range=image_range) for i in choose(len(source))}, None
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in _VIDEOS:
        return _of_file(Path(source), choose)
    name, content = read_source(source)
    if not isinstance(content, bytes):
        raise InputError(f"{name} is one image", fix="give a list of images, a folder, or a file")

    def of_so_many(total: int) -> list[int]:
        if total > MAX_FRAMES:
            raise _too_much(name)
        return choose(total)

    return decode_frames(content, name, of_so_many)


def _of_file(path: Path, choose: Choose) -> tuple[dict[int, Image.Image], float | None]:
    """By PyAV: once to count the frames, for a header may not say how many there are, and once to take some."""
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        raise ConfigError(
            f"to read {name_of(path)} takes PyAV, which is not installed",
            fix=f"{extras.install('video')}; or give its frames as a folder of images: "
            f"ffmpeg -i {path} -vf fps=1 frames/%04d.png",
        ) from error
    if not path.is_file():
        raise InputError(
            f"there is no file {name_of(path)}", fix=f"give a path that exists from {Path.cwd()}"
        )
    try:
        total, fps = _through(av, path, lambda number, frame: None)
        wanted, found = set(choose(total)), dict[int, Image.Image]()

        def take(number: int, frame: Any) -> None:
            if number in wanted:
                found[number] = frame.to_image().convert("RGB")

        _through(av, path, take)
    except InputError:
        raise
    except Exception as error:  # FFmpeg's errors are classes of PyAV's own
        raise InputError(
            f"{name_of(path)} is no video, or damaged: {error}", fix="copy or download the file again"
        ) from error
    return found, fps


def _through(av: Any, path: Path, take: Callable[[int, Any], None]) -> tuple[int, float | None]:
    """Decode a file's video stream frame by frame; how many there are, and how many in a second, where the file says it."""
    number = 0
    # A playlist within the file names others: no address is fetched.
    with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
        rate = container.streams.video[0].average_rate if container.streams.video else None
        for frame in container.decode(video=0):
            if frame.width * frame.height > MAX_PIXELS or number >= MAX_FRAMES:
                raise _too_much(name_of(path))
            take(number, frame)
            number += 1
    return number, float(rate) if rate else None


def _too_much(name: str) -> InputError:
    return InputError(
        f"{name} has over {MAX_PIXELS:,} pixels a frame, or over {MAX_FRAMES:,} frames",
        fix="cut it to a part, or scale it down first",
    )
