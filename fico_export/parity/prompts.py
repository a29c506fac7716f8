"""The images and the question that a bundle is compared on, and the prompts made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.errors import InputError
from fico_export.parity.int4 import StreamedReference
from fico_export.parity.reference import AnyReference
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.vlm import Vlm

Embedder = AnyReference | StreamedReference  # all have the embedding table


class Prompt(NamedTuple):
    """A prompt as the decoder takes it.

    Attributes:
        embeds: [S, C].
        positions: [A, S].
        visual_rows: [N] rows of the visual tokens, ascending.
        planes: [L, S, C] what the decoder adds after its first L layers; None where it adds nothing.
    """

    embeds: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int64]
    visual_rows: npt.NDArray[np.int64]
    planes: npt.NDArray[np.float32] | None = None

    def followed(self, embeds: npt.NDArray[np.float32], positions: npt.NDArray[np.int64]) -> Prompt:
        """The prompt with text tokens after it: embeddings [T, C] at position ids [A, T]."""
        planes = self.planes
        if planes is not None:
            planes = np.concatenate([planes, np.zeros((len(planes), *embeds.shape), planes.dtype)], axis=1)
        return Prompt(
            np.concatenate([self.embeds, embeds]),
            np.concatenate([self.positions, positions], axis=1),
            self.visual_rows,
            planes,
        )


QUESTION = "What is in the picture?"
NEW_TOKENS = 8


def pictures(count: int) -> list[Image.Image]:
    """Images of many sizes with smooth, flat and noisy parts, the same on every machine."""
    made = []
    for i in range(count):
        generator = np.random.RandomState(i)
        height, width = (generator.randint(200, 500), generator.randint(200, 500))
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / (7 + 11 * c + i)) + np.cos(y / (5 + 13 * c)) for c in range(3)]
        canvas = (np.stack(waves, -1) + 2) * 63
        canvas[: height // 3, width // 2 :] = generator.randint(0, 255, 3)
        canvas[height // 2 :, : width // 3] += generator.randint(
            -60, 60, canvas[height // 2 :, : width // 3].shape
        )
        made.append(Image.fromarray(canvas.clip(0, 255).astype(np.uint8)))
    return made


def holds(vlm: Vlm, image: Image.Image) -> bool:
    """Whether the image shows enough tokens to keep, of a bundle that leaves padding out."""
    try:
        if vlm.layout.masked:
            vlm.layout.valid(image.size)
    except InputError:
        return False
    return True


def asked_about(vlm: Vlm, count: int) -> list[Image.Image]:
    """So many images that a bundle can be asked about."""
    (rows, columns), (height, width) = vlm.manifest.profile.tile_grid, vlm.manifest.profile.size
    whole = (columns * width, rows * height)
    return [image if holds(vlm, image) else image.resize(whole) for image in pictures(count)]


def fits(vlm: Vlm, shown: Sequence[Image.Image]) -> bool:
    """Whether the bundle takes so many images, and a static cache has room for them and an answer; every export's has for one."""
    rows, count = vlm.manifest.cache_rows, len(shown)
    if count < 2 or not vlm.layout.takes(count):
        return count < 2
    layout = vlm.layout.among(count)
    length = len(ids(vlm, count)) + sum(layout.rows(image.size) - 1 for image in shown)
    return rows is None or length + NEW_TOKENS <= rows


def lay_out(vlm: Vlm, shown: Sequence[Image.Image], reference: Embedder) -> Prompt:
    """The prompt about these images, each as the bundle's vision graph makes it."""
    encoded = [vlm.encode_image(image, QUESTION, among=len(shown)) for image in shown]
    laid_out = vlm.layout.lay_out(ids(vlm, len(shown)), encoded)
    embeds, positions, planes = laid_out.rows(reference.embed, encoded)
    return Prompt(
        embeds.astype(np.float32, copy=False),
        positions,
        laid_out.visual_rows,
        None if planes is None else planes.astype(np.float32, copy=False),
    )


def ids(vlm: Vlm, count: int) -> list[int]:
    """Token ids of the prompt with so many images, one image token for each."""
    return vlm.formatter.encode([Message("user", QUESTION, count)])


def whole_ids(vlm: Vlm, shown: Sequence[Image.Image]) -> list[int]:
    """Token ids of the prompt as ``generate`` has them: N visual tokens an image."""
    return vlm.layout.whole_ids(ids(vlm, len(shown)), [image.size for image in shown])
