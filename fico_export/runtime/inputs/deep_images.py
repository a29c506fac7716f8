"""Images of more than 8 bits a value (depth, thermal and industrial cameras): scaled to 8 bits by a range, never clipped in silence."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.errors import ConfigError, ImageWarning, InputError
from fico_export.runtime.inputs.image_bounds import TiffHeader

Range = tuple[float, float]
"""The values that become black and white."""

Values = npt.NDArray[Any]
_BLOCK_VALUES = 1 << 22
_DTYPES = ("uint16", "int16", "uint32", "int32", "float32", "float64")
_ADVICE = "give the same range for every image: --image-range LO,HI, or image_range=(LO, HI) in Python"


def check_range(image_range: object) -> Range | None:
    """A range as two floats; None where none is given.

    Raises:
        ConfigError: it is not two finite numbers, the lower first.
    """
    if image_range is None:
        return None
    try:
        low, high = (float(end) for end in image_range)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        low = high = math.nan
    if not (low < high and math.isfinite(high - low)):
        raise ConfigError(
            f"image_range is {image_range!r}, not two finite numbers with the lower first",
            fix="give the values that are to be black and white, such as image_range=(0, 4096)",
        )
    return low, high


def has_deep_values(picture: Image.Image, header: TiffHeader | None) -> bool:
    """Whether an image is grey of over 8 bits, or of 8 with a sign.

    Args:
        picture: of any mode.
        header: of the TIFF that it came from.
    """
    signed_bytes = picture.mode == "L" and header is not None and header.signed_bytes
    return signed_bytes or picture.mode == "F" or picture.mode.partition(";")[0] == "I"


def deep_values(picture: Image.Image, header: TiffHeader | None) -> Values:
    """The values [H, W] of such an image."""
    values = np.asarray(picture)
    if picture.mode == "L":
        return values.view(np.int8)
    # Pillow reads 32 bits without a sign as if they had one.
    unsigned = picture.mode == "I" and header is not None and header.unsigned
    return values.view(np.uint32) if unsigned else values


def is_deep(array: Values) -> bool:
    """Whether an array is a grey image of over 8 bits."""
    return array.dtype.name in _DTYPES and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1))


def to_8_bits(
    values: Values, name: str, image_range: Range | None, *, white_is_zero: bool = False
) -> Image.Image:
    """Scale values to an RGB image of 8 bits, and warn where the range is the image's own.

    Args:
        values: [H, W] of any kind of number. NaN becomes black.
        name: what to call the image.
        image_range: values that become black and white, what lies beyond too; by default the least and the greatest finite value.
        white_is_zero: whether black and white are the other way round.

    Raises:
        InputError: no value is finite.
    """
    low, high = image_range or _range(values, name)
    if image_range is None:
        warnings.warn(ImageWarning(_warning(values, name, low, high)), stacklevel=2)
    grey = np.zeros(values.shape, np.uint8)
    rows = max(1, _BLOCK_VALUES // values.shape[1])
    for at in range(0, values.shape[0], rows) if high > low else ():
        scaled = (values[at : at + rows].astype(np.float64) - low) * (255 / (high - low))
        grey[at : at + rows] = np.nan_to_num(np.rint(scaled.clip(0, 255)), nan=0).astype(np.uint8)
    return Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")


def _range(values: Values, name: str) -> Range:
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    finite = np.isfinite(values)
    if not finite.any():
        raise InputError(
            f"{name} has no finite value: all are NaN or infinite", fix="give an image that has some"
        )
    low = float(np.min(values, where=finite, initial=np.inf))
    high = float(np.max(values, where=finite, initial=-np.inf))
    if not math.isfinite(high - low):
        raise InputError(f"{name} has values from {low:g} to {high:g}, too far apart to scale", fix=_ADVICE)
    return low, high


def _warning(values: Values, name: str, low: float, high: float) -> str:
    lost = int(values.size - np.isfinite(values).sum()) if values.dtype.kind == "f" else 0
    besides = f"; {lost:,} are NaN, which becomes black, or infinite" if lost else ""
    if low == high:
        return f"{name} has the value {low:g} everywhere{besides}, and becomes black; {_ADVICE}"
    return f"{name} has values from {low:g} to {high:g}{besides}: scaled by that range to 8 bits; {_ADVICE}"
