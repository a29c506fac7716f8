"""Calibration prompts: what the decoder is given for images and questions like those it will be asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from fico_export import documents
from fico_export.errors import ConfigError
from fico_export.exporter.stream import Tokens
from fico_export.in_full import in_full
from fico_export.models.decoders.base import EMBEDDINGS
from fico_export.models.source import SourceModel
from fico_export.runtime.inputs.image_sources import beside
from fico_export.runtime.inputs.images import ImageSource, load_image
from fico_export.runtime.inputs.positions import as_input
from fico_export.runtime.inputs.preprocess import ImageProcessor
from fico_export.runtime.inputs.prompt import Message, PromptFormatter

_LINE = '{"image": "picture.png", "prompt": "What is in the picture?"}'


def read_prompts(path: Path, checkpoint: SourceModel) -> list[Tokens]:
    """Read a file of lines such as `{"image": "picture.png", "prompt": "…"}`, and make the decoder's input of each.

    All visual tokens go in, whatever the bundle's method keeps: which channels are large is the same for any part of them.

    Args:
        path: of the .jsonl file; images are found relative to it.
        checkpoint: whose tower, tokenizer and embeddings make the sequences.

    Raises:
        ConfigError: the file cannot be read, or a line is not such an object.
        InputError: an image cannot be used.
    """
    entries = list(_lines(path))
    return list(sequences(checkpoint, ((beside(path.parent, image), prompt) for image, prompt in entries)))


def sequences(checkpoint: SourceModel, entries: Iterable[tuple[ImageSource, str]]) -> Iterator[Tokens]:
    """The decoder's input for each image and question, all visual tokens in it.

    Raises:
        InputError: an image cannot be used.
    """
    texts = checkpoint.files()
    formatter = PromptFormatter(texts.tokenizer, texts.chat_template, checkpoint.tokens)
    processor = ImageProcessor.from_config(texts.preprocessor)
    layout, features_of = in_full(checkpoint)
    table = checkpoint.checkpoint.load(EMBEDDINGS)
    for image, prompt in entries:
        pixels = layout.pixels(load_image(image), processor)
        shown = features_of(pixels)
        laid_out = layout.lay_out(formatter.encode([Message("user", prompt, 1)]), [shown])
        embeds, positions, planes = laid_out.rows(lambda ids: table[ids].to(torch.float32).numpy(), [shown])
        yield Tokens.of(embeds, as_input(positions), planes)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    lines = documents.read_text(path, fix=f"give --calibrate a UTF-8 file of lines like {_LINE}").splitlines()
    found = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found += 1
        place, fix = f"--calibrate {path}, line {number}", f"write it like {_LINE}"
        entry = documents.parse_object(line, place, fix=fix)
        for field in ("image", "prompt"):
            if not isinstance(entry.get(field), str) or "\0" in entry[field]:
                raise ConfigError(f"{place} has no {field} that is a text", fix=fix)
        yield entry["image"], entry["prompt"]
    if not found:
        raise ConfigError(f"--calibrate {path} has no lines", fix=f"write some like {_LINE}")
