"""An image to the pixels the vision tower was trained on.

Bit-equal to the Pillow processors of transformers 5 (``CLIPImageProcessorPil``, ``LlavaImageProcessorPil`` and
``SiglipImageProcessorPil``; for each tile also those of LLaVA-NeXT and LLaVA-OneVision, and for an image of which the latter
makes no tiles). The torchvision processors round differently and are not the reference.

    image   →  [pad to a square]  →  resize  →  centre crop  →  (x · factor − mean) / std
    RGB, upright  LLaVA, OneVision      Pillow     zeros outside   float32 [1, 3, H, W]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.errors import ConfigError, InputError, unknown_name
from fico_export.runtime.inputs.images import MAX_PIXELS

MAX_VALUE = 1e6
"""Largest number that pixels are shifted by, divided by, or multiplied with."""

MAX_EDGE = 2**13
"""Side of the largest image that a tower is given, in pixels."""

_CLIP = {
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_SIGLIP = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "crop_size": None,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_ONEVISION = {**_CLIP, "size": {"height": 384, "width": 384}, "do_center_crop": False, "crop_size": None}
_QWEN = {**_CLIP, "size": None, "do_center_crop": False, "crop_size": None}
_IDEFICS = {**_SIGLIP, "size": None, "resample": int(Image.Resampling.LANCZOS)}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "LlavaImageProcessor": _CLIP,
    "LlavaNextImageProcessor": _CLIP,
    "LlavaOnevisionImageProcessor": _ONEVISION,
    "GotOcr2ImageProcessor": _QWEN,
    "Idefics3ImageProcessor": _IDEFICS,
    "Qwen2VLImageProcessor": _QWEN,
    "SmolVLMImageProcessor": _IDEFICS,
    "SiglipImageProcessor": _SIGLIP,
}
"""Processor name → what it does where the config is silent."""

_BY_LAYOUT = (
    "GotOcr2ImageProcessor",
    "Idefics3ImageProcessor",
    "Qwen2VLImageProcessor",
    "SmolVLMImageProcessor",
)
"""Of which an image comes in the size that its profile has: whatever bounds the processor names, the layout's rule has chosen."""

_ALWAYS_SQUARE = "LlavaOnevisionImageProcessor"
_SQUARES = ("LlavaImageProcessor", _ALWAYS_SQUARE)
"""Those that make a square of the mean colour: LLaVA's where ``do_pad`` says so, OneVision's of what is no tile already."""

_SWITCHES = (
    "do_pad",
    "do_resize",
    "do_center_crop",
    "do_image_splitting",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
    "default_to_square",
)


@dataclass(frozen=True, eq=False)
class ImageProcessor:
    """What ``preprocessor_config.json`` asks for, done with Pillow and numpy.

    Args:
        pad_color: the colour that fills an image to a square before it is resized; None leaves its shape.
        size: the shortest edge, or (height, width), after resizing; None does not resize.
        resample: the resizing filter.
        crop: (height, width) of the centre crop, black where it reaches outside; None does not crop.
        table: the value the tower gets for each byte of each channel, float32 [3, 256].
    """

    pad_color: tuple[int, int, int] | None
    size: int | tuple[int, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None
    table: npt.NDArray[np.float32]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImageProcessor:
        """Read the dictionary of a ``preprocessor_config.json``.

        An absent key gets the processor's default; a null one does not: a switch is off, a value missing.

        Raises:
            ConfigError: the processor is not one of the supported, or a value is not one it can have.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"preprocessor_config.json holds {config!r:.60}, not an object",
                fix="use the preprocessor_config.json that was published with this checkpoint",
            )
        name = _processor_name(config)
        config = {**_PROCESSORS[name], **config}
        _check_switches(config)
        pads, squares = bool(config.get("do_pad")) or name == _ALWAYS_SQUARE, name in _SQUARES
        if pads and not squares and config.get("pad_size") is not None:
            raise _bad_value("pad_size", config["pad_size"], f"null, all that {name} is supported with")
        resample = config.get("resample", Image.Resampling.BICUBIC)
        if not isinstance(resample, int) or not _is_number(resample, 0, 5):
            raise _bad_value("resample", resample, "one of Pillow's filters, 0 to 5")

        size: int | tuple[int, int] | None = None
        if config.get("do_resize", True) and name not in _BY_LAYOUT:
            square = bool(config.get("default_to_square", False))
            size = _edges(config["size"], "size", square=square)
        crop: tuple[int, int] | None = None
        if config["do_center_crop"]:
            edges = _edges(config["crop_size"], "crop_size", square=True)
            if isinstance(edges, int):
                raise _bad_value("crop_size", config["crop_size"], "an int, or height and width")
            crop = edges
        color = (0, 0, 0)
        if pads and squares and (mean := config["image_mean"]) is not None:
            red, green, blue = _channels(mean, "image_mean")
            if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 1:
                raise _bad_value(
                    "image_mean", mean, "three numbers of 0 to 1, the colour that do_pad fills with"
                )
            color = (int(red * 255), int(green * 255), int(blue * 255))
        return cls(
            color if pads and squares else None, size, Image.Resampling(resample), crop, _table(config)
        )

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Turn an image from `load_image` into pixel values, float32 [1, 3, H, W].

        Raises:
            InputError: the image has no pixels, or is so long and thin that it would grow over ``MAX_PIXELS``.
        """
        picture = image if image.mode == "RGB" else image.convert("RGB")
        (padded_width, padded_height), (resized_width, resized_height) = self._sizes(*picture.size)
        if (padded_width, padded_height) != picture.size:
            square = Image.new("RGB", (padded_width, padded_height), self.pad_color)
            left, top = (padded_width - picture.width) // 2, (padded_height - picture.height) // 2
            square.paste(picture, (left, top))
            picture = square
        if self.size is not None:
            picture = picture.resize((resized_width, resized_height), resample=self.resample)
        if self.crop is not None:
            picture = picture.crop(self._crop_in(resized_width, resized_height, self.crop))
        pixels = np.asarray(picture)  # uint8 [H, W, 3]
        return np.stack([self.table[channel][pixels[..., channel]] for channel in range(3)])[None]

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Where in the upright image the tower looks, to draw its patches over it.

        Of a side that the patch size does not divide, the rest at the right or lower end belongs to no patch.

        Returns:
            (left, top, right, bottom) in pixels of the image. It reaches outside where the tower sees padding.

        Raises:
            InputError: as `__call__` on an image of this size.
        """
        (padded_width, padded_height), (resized_width, resized_height) = self._sizes(width, height)
        left, top, right, bottom = 0, 0, resized_width, resized_height
        if self.crop is not None:
            left, top, right, bottom = self._crop_in(resized_width, resized_height, self.crop)
        across, down = padded_width / resized_width, padded_height / resized_height
        offset_x, offset_y = (padded_width - width) // 2, (padded_height - height) // 2
        return (
            left * across - offset_x,
            top * down - offset_y,
            right * across - offset_x,
            bottom * down - offset_y,
        )

    def _sizes(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) of the image once padded, and once resized."""
        if width < 1 or height < 1:
            raise InputError(f"an image of {width}×{height} has no pixels", fix="give an image that has some")
        padded = (width, height) if self.pad_color is None else (max(width, height),) * 2
        resized = padded
        if isinstance(self.size, tuple):
            resized = (self.size[1], self.size[0])
        elif self.size is not None:
            longest = int(self.size * max(padded) / min(padded))
            resized = (self.size, longest) if padded[0] <= padded[1] else (longest, self.size)
        for stage, (new_width, new_height) in (("padded", padded), ("resized", resized)):
            if new_width * new_height > MAX_PIXELS:
                raise InputError(
                    f"an image of {width}×{height} is {new_width}×{new_height} when {stage}, over {MAX_PIXELS:,} pixels",
                    fix="crop the image to a part that is less long and thin",
                )
        return padded, resized

    @staticmethod
    def _crop_in(width: int, height: int, crop: tuple[int, int]) -> tuple[int, int, int, int]:
        """The centre crop's box; rounds down on both sides of zero, as the reference does in two cases."""
        left, top = (width - crop[1]) // 2, (height - crop[0]) // 2
        return left, top, left + crop[1], top + crop[0]


def _processor_name(config: Mapping[str, Any]) -> str:
    """Which of the supported processors a configuration names; Fast and Pil name the same one by how it is computed."""
    key = next((k for k in ("image_processor_type", "feature_extractor_type") if config.get(k)), None)
    if key is None:
        video = config.get("video_processor_type")
        what = f"is of a video processor ({video!r})" if video else "names no image processor"
        raise ConfigError(
            f"preprocessor_config.json {what}: it has no image_processor_type",
            fix=f'write "image_processor_type" into it, one of: {", ".join(sorted(_PROCESSORS))}',
        )
    named = config[key]
    if not isinstance(named, str):
        raise _bad_value(key, named, "a name")
    # Configs of old transformers call the processor a feature extractor.
    name = named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name not in _PROCESSORS:
        raise unknown_name("image processor", named[:60], _PROCESSORS)
    return name


def _table(config: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """What rescaling and normalizing make of each byte of each channel, float32 [3, 256].

    A table loses nothing: each output depends on one byte and its channel only. The widths are the reference's,
    float64 up to the rescaled value and float32 from there on.
    """
    values, factor = np.arange(256, dtype=np.float64), 1.0
    if config.get("do_rescale", True):
        factor = config.get("rescale_factor", 1 / 255)
        if not _is_number(factor, 0, MAX_VALUE) or factor == 0:
            raise _bad_value("rescale_factor", factor, f"a finite number above 0, at most {MAX_VALUE:.0f}")
        values = values * factor
    table = np.repeat(values.astype(np.float32)[None], 3, axis=0)
    if config.get("do_normalize", True):
        mean = _channels(config["image_mean"], "image_mean")
        std = _channels(config["image_std"], "image_std")
        white = max(1.0, 255 * factor)
        if not 0 <= min(mean) <= max(mean) <= white:
            raise _bad_value(
                "image_mean", config["image_mean"], f"three numbers of 0 to {white:g}, as pixels are"
            )
        if min(std) < 1 / MAX_VALUE:
            raise _bad_value("image_std", config["image_std"], "numbers above 0")
        table = (table - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    return table


def _channels(value: Any, key: str) -> tuple[float, float, float]:
    """One number for each of red, green and blue, from three or from one for all."""
    numbers = [value] * 3 if isinstance(value, int | float) else value
    if (
        not isinstance(numbers, list | tuple)
        or len(numbers) != 3
        or not all(_is_number(number, -MAX_VALUE, MAX_VALUE) for number in numbers)
    ):
        raise _bad_value(key, value, f"three finite numbers, of at most {MAX_VALUE:.0f}")
    red, green, blue = (float(number) for number in numbers)
    return red, green, blue


def _edges(value: Any, key: str, *, square: bool) -> int | tuple[int, int]:
    """A shortest edge, or (height, width), from the forms configs have had; ``square`` decides for a bare int."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    edges = (
        {name: edge for name, edge in value.items() if edge is not None} if isinstance(value, Mapping) else {}
    )
    if any(not _is_number(edge, 1, MAX_EDGE) or not isinstance(edge, int) for edge in edges.values()):
        edges = {}
    if set(edges) == {"shortest_edge"}:
        return int(edges["shortest_edge"])
    if set(edges) == {"height", "width"}:
        return int(edges["height"]), int(edges["width"])
    raise _bad_value(key, value, f"an int, shortest_edge, or height and width, of 1 to {MAX_EDGE} pixels")


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _check_switches(config: Mapping[str, Any]) -> None:
    """Refuse a switch that is neither on nor off: a text such as "false" would count as on."""
    for key in _SWITCHES:
        value = config.get(key)
        if value is not None and not isinstance(value, bool):
            raise _bad_value(key, value, "true or false")


def _bad_value(key: str, value: object, expected: str) -> ConfigError:
    return ConfigError(
        f"the image processor's {key} is {value!r:.80}, not {expected}",
        fix=f"correct {key} in preprocessor_config.json (or under image_processor in processor_config.json)",
    )
