"""Images: a source to an upright RGB image in memory, as transformers' ``load_image`` reads it; and one encoded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.errors import InputError
from fico_export.runtime.inputs.deep_images import (
    Range,
    check_range,
    deep_values,
    has_deep_values,
    is_deep,
    to_8_bits,
)
from fico_export.runtime.inputs.image_bounds import MAX_PIXELS
from fico_export.runtime.inputs.image_decode import decode, settle
from fico_export.runtime.inputs.image_sources import ImageSource, path_of, read_source
from fico_export.runtime.inputs.layouts.base import Block, Kind, Size

__all__ = [
    "MAX_PIXELS",
    "ImageFeatures",
    "ImageSource",
    "Images",
    "Pixels",
    "Range",
    "Video",
    "image_list",
    "load_image",
]

_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Pixels:
    """An image as the tower is shown it.

    Attributes:
        values: [T, 3, H, W] float32, or all frames of a video.
        size: (width, height) of the upright image, or of the frames, that they were made from.
        kind: how the prompt is to show them.
        image: the upright image, of one for a prompt of its own, where the model shows several otherwise.
    """

    values: npt.NDArray[np.float32]
    size: Size
    kind: Kind = "alone"
    image: Image.Image | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The values, for whoever takes an array."""
        return np.asarray(self.values, dtype)


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision graph made of an image, and where it stands in a prompt.

    Attributes:
        features: [K, D] in the bundle's precision, ready for the decoder.
        keep_index: [K] int64 raster positions within the tiles, ascending.
        digest: identifies the pixels, and the prompt where the graph read it, so that a conversation knows an image it has seen.
        size: (width, height) of the upright image.
        block: the R rows of the prompt that stand for the image.
        planes: [L, K, D] what is added to the hidden states of these rows after the first L layers, where the model has such.
        newline: [D] the model's newline vector, where it has one and the image's rows end with it.
        kind: as of `Pixels`.
        again: the image, and what the graph took of the prompt, to encode it as one of several.
    """

    features: npt.NDArray[Any]
    keep_index: npt.NDArray[np.int64]
    digest: str
    size: Size
    block: Block
    planes: npt.NDArray[Any] | None = None
    newline: npt.NDArray[Any] | None = None
    kind: Kind = "alone"
    again: tuple[Image.Image, Mapping[str, npt.NDArray[Any]]] | None = None

    @property
    def runs(self) -> list[int | range]:
        """The rows: ids of text tokens, and runs of visual tokens as ranges of rows."""
        return self.block.runs

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """[A, R] position id of each row, counted from where the image begins."""
        return self.block.offsets

    @property
    def span(self) -> int:
        """Position ids that the image takes."""
        return self.block.span


@dataclass(frozen=True)
class Video:
    """A video, as an `images` argument takes it; a prompt shows it after the images of its turn.

    Args:
        source: a video file, an animated image, a folder of images in the order of their names, or images.
        fps: frames a second, for a model that is told when each was. By default what the file says; 24 of images, as transformers
            has it.
    """

    source: str | os.PathLike[str] | bytes | Sequence[ImageSource]
    fps: float | None = None


Images = ImageSource | Video | ImageFeatures | Iterable[ImageSource | Video | ImageFeatures]
"""One image or several, as every `images` argument takes them; videos among them."""

_ALONE = (
    ImageFeatures,
    Video,
    str,
    os.PathLike,
    bytes,
    bytearray,
    memoryview,
    np.ndarray,
    Image.Image,
    Mapping,
)


def image_list(
    images: Images | None, image_range: Range | None = None
) -> list[ImageSource | Video | ImageFeatures]:
    """One image or several as a list; an image alone is a list of one.

    Args:
        images: what an `images` argument was given.
        image_range: as of `load_image`; with one, every image that is not encoded is loaded.

    Raises:
        ConfigError: the range is none.
        InputError: an image cannot be loaded with the range.
    """
    check_range(image_range)
    if images is None:
        return []
    alone = isinstance(images, _ALONE) or hasattr(images, "read") or not isinstance(images, Iterable)
    given: list[Any] = [images] if alone else list(images)  # type: ignore[arg-type]
    if image_range is None:
        return given
    ready = (ImageFeatures, Video)
    return [i if isinstance(i, ready) else load_image(i, image_range=image_range) for i in given]


def is_video(image: ImageSource | Video | ImageFeatures | Pixels) -> bool:
    """Whether it is one, or what was made of one."""
    return isinstance(image, Video) or (isinstance(image, ImageFeatures | Pixels) and image.kind == "video")


def load_image(source: ImageSource, *, image_range: Range | None = None) -> Image.Image:
    """Read an image upright and as RGB; of an animation, its first frame.

    A grey image of more than 8 bits is scaled to 8 by its own range, with an `ImageWarning`, or by the range given.

    Args:
        source: a file, a data URL, the bytes of a file, a binary file object (one that can seek is left where it was), an array
            of uint8 [H, W, 3] in RGB order, [H, W, 4], [H, W, 1] or [H, W], or an open image (which is left as it is).
        image_range: of a grey image of more than 8 bits, the values that become black and white.

    Returns:
        An RGB image with its EXIF rotation applied, in memory.

    Raises:
        ConfigError: the range is not two numbers.
        InputError: the source is an address, missing, empty, damaged, not an image, too large, or of 8 bits with a range given.
    """
    image_range = check_range(image_range)
    name, content = read_source(source)
    if isinstance(content, np.ndarray):
        if is_deep(content):
            _check_shape(content, name)
            return to_8_bits(content.reshape(content.shape[:2]), name, image_range)
        picture, header = settle(_of_array(content, name), name)
    elif isinstance(content, bytes):
        picture, header = decode(content, name, path_of(source))
    else:
        picture, header = settle(content, name)
    if has_deep_values(picture, header):
        inverted = header is not None and header.white_is_zero
        return to_8_bits(deep_values(picture, header), name, image_range, white_is_zero=inverted)
    if image_range is not None:
        raise InputError(
            f"{name} has 8 bits a value, and a range is for grey images of more",
            fix="leave out the range (--image-range, or image_range= in Python)",
        )
    return picture


def _check_shape(array: npt.NDArray[Any], name: str) -> None:
    height, width = array.shape[:2]
    if height * width == 0:
        raise InputError(
            f"{name} has no pixels: its shape is {array.shape}", fix="give an image that has some"
        )
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{name}, {width}×{height}, has over {MAX_PIXELS:,} pixels",
            fix="scale the image down first; the tower sees far fewer",
        )


def _of_array(array: npt.NDArray[Any], name: str) -> Image.Image:
    what = f"{name} has the shape {array.shape} and dtype {array.dtype}; an image is uint8 [H, W, 3] in RGB order"
    if array.ndim == 3 and array.shape[2] > max(_CHANNELS) and array.shape[0] in _CHANNELS:
        raise InputError(what, fix="put the channels last: array.transpose(1, 2, 0)")
    if array.ndim == 4:
        raise InputError(what, fix="give the images one by one: images=list(array)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise InputError(what, fix="give [H, W, 3], [H, W, 4] with alpha, or [H, W] in grey")
    if array.dtype != np.uint8:
        raise InputError(what, fix=_cast(array))
    _check_shape(array, name)
    plain = np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array)
    return Image.fromarray(plain)


def _cast(array: npt.NDArray[Any]) -> str:
    """How an array of another dtype becomes bytes."""
    if array.dtype == np.bool_:
        return "scale it: array.astype(numpy.uint8) * 255"
    if array.dtype.kind == "f" and array.size and np.nanmin(array) >= 0 and np.nanmax(array) <= 1:
        return "scale it: (array * 255).round().astype(numpy.uint8)"
    return "scale its values to 0…255, and give array.astype(numpy.uint8)"
