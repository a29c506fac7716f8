"""A prompt token by token: where its pictures stand, which positions it takes, and whether the model has room for it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from fico_export.bundle.manifest import Manifest
from fico_export.errors import InputError
from fico_export.runtime.backends.base import require_rows
from fico_export.runtime.images import ImageFeatures


@dataclass(frozen=True)
class LaidOut:
    """A prompt laid out token by token.

    Attributes:
        keys: what each token is: its id, or (picture, which of its tokens). Equal keys have equal cache entries.
        ids: token ids, image tokens expanded.
        positions: position ids.
        next_position: of the first token of the answer.
    """

    keys: list[Hashable]
    ids: list[int]
    positions: list[int]
    next_position: int


def lay_out(manifest: Manifest, ids: list[int], features: Sequence[ImageFeatures]) -> LaidOut:
    """Keys and position ids: compact counts the tokens; original gives a picture all N positions it had."""
    reduction, image_id = manifest.reduction, manifest.tokens.image_id
    keys: list[Hashable] = []
    positions: list[int] = []
    position = at = picture = 0
    while at < len(ids):
        if ids[at] != image_id:
            keys.append(ids[at])
            positions.append(position)
            position, at = position + 1, at + 1
            continue
        shown = features[picture]
        original = reduction.positions == "original"
        offsets = shown.keep_index.tolist() if original else range(reduction.handed_over)
        keys += [(shown.digest, i) for i in range(reduction.handed_over)]
        positions += [position + offset for offset in offsets]
        position += reduction.visual_tokens if original else reduction.handed_over
        at, picture = at + reduction.handed_over, picture + 1
    return LaidOut(keys, ids, positions, position)


def require_room(manifest: Manifest, ids: Sequence[int]) -> None:
    """Refuse a prompt that leaves no room for an answer.

    Raises:
        InputError: it takes more positions than the model has, or more rows than a static cache.
    """
    reduction, context = manifest.reduction, manifest.decoder.context
    pictures = ids.count(manifest.tokens.image_id) // reduction.handed_over
    spread = reduction.visual_tokens - reduction.handed_over if reduction.positions == "original" else 0
    needed = len(ids) + pictures * spread
    if manifest.cache_rows is not None:
        require_rows(0, len(ids), manifest.cache_rows)
    if needed >= context:
        raise InputError(
            f"the prompt takes {needed} positions, {reduction.handed_over} tokens a picture; the model has {context}",
            fix="shorten the prompt, give fewer pictures, or export with a smaller --keep",
        )
