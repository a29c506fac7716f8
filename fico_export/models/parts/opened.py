"""A checkpoint's files as a source model, of any family: tensors found and of the right shape, texts read when asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fico_export.models.decoders.base import EMBEDDINGS
from fico_export.models.parts import identify, texts
from fico_export.models.source import Architecture, Files, SourceModel
from fico_export.models.weights import RENAMES, Rename, Weights, nothing

_HEAD_AND_EMBEDDING = ("lm_head.weight", EMBEDDINGS)


def opened(
    folder: Path,
    revision: str | None,
    raw: dict[str, Any],
    config: Any,
    described: Architecture,
    *,
    unread: Callable[[str], bool] = nothing,
    renames: Sequence[Rename] = RENAMES,
    files: Callable[[Files], Files] = lambda files: files,
) -> SourceModel:
    """The model in a folder.

    Args:
        folder: of the checkpoint.
        revision: commit of the hub repository, or None for a plain folder.
        raw: content of config.json.
        config: the same as transformers reads it, or what has its `image_token_id`.
        described: what the family makes of it.
        unread: tells of a tensor's canonical name whether the model is known to have it and not to need it.
        renames: from the checkpoint's keys to canonical names.
        files: completes the text files.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or one too many; or a text file is missing or damaged.
    """
    parts = (config, getattr(config, "text_config", None))
    tied = any(getattr(part, "tie_word_embeddings", False) for part in parts)
    checkpoint = Weights(folder, _HEAD_AND_EMBEDDING if tied else None, renames)
    if (adapter := identify.beside_weights(folder)) is not None:
        raise adapter
    checkpoint.check(described.shapes, unread)
    return SourceModel(
        **vars(described),
        folder=folder,
        revision=revision,
        checkpoint=checkpoint,
        tokens=texts.tokens(folder, raw, config),
        files=lambda: files(texts.files(folder, raw, config)),
    )
