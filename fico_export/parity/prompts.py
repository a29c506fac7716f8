"""The pictures and the question that a bundle is compared on, and the prompts made of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.parity.int4 import StreamedReference
from fico_export.parity.reference import Reference
from fico_export.runtime.prompt import Message
from fico_export.runtime.vlm import Vlm

Embedder = Reference | StreamedReference  # both have the embedding table

QUESTION = "What is in the picture?"
NEW_TOKENS = 8


def pictures(count: int) -> list[Image.Image]:
    """Pictures of many sizes with smooth, flat and noisy parts, the same on every machine."""
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


def fits(vlm: Vlm, count: int) -> bool:
    """Whether a static cache has room for a prompt with so many pictures and its answer; every export's has for one."""
    rows = vlm.manifest.cache_rows
    return count < 2 or rows is None or len(ids(vlm, count)) + NEW_TOKENS <= rows


def visual_start(vlm: Vlm) -> int:
    """Where the visual tokens of one picture begin in the prompt."""
    return ids(vlm, 1).index(vlm.manifest.tokens.image_id)


def lay_out(
    vlm: Vlm, images: list[Image.Image], reference: Embedder
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Embeddings and position ids of the prompt, laid out from the manifest alone."""
    reduction, image_id = vlm.manifest.reduction, vlm.manifest.tokens.image_id
    prompt = ids(vlm, len(images))
    encoded = [vlm.encode_image(image, QUESTION) for image in images]
    embeds = reference.embed([0 if i == image_id else i for i in prompt])
    positions, position, seen = [], 0, 0
    for at, token in enumerate(prompt):
        if token != image_id:
            positions.append(position)
            position += 1
            continue
        picture, row = divmod(seen, reduction.handed_over)
        seen += 1
        embeds[at] = encoded[picture].features[row]
        if reduction.positions == "compact":
            positions.append(position)
            position += 1
        else:
            positions.append(position + int(encoded[picture].keep_index[row]))
            if row == reduction.handed_over - 1:
                position += reduction.visual_tokens
    return embeds, positions


def ids(vlm: Vlm, count: int) -> list[int]:
    """Token ids of the prompt with so many pictures, each as many visual tokens as the vision graph hands over."""
    return vlm.formatter.encode([Message("user", QUESTION, count)], vlm.manifest.reduction.handed_over)


def whole_ids(vlm: Vlm, count: int) -> list[int]:
    """Token ids of the prompt with so many pictures as ``generate`` has them: N visual tokens a picture."""
    return vlm.formatter.encode([Message("user", QUESTION, count)], vlm.manifest.reduction.visual_tokens)
