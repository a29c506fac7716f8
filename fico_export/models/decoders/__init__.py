"""Decoder forms: one file each, which ends in a `FORM`. The folder is the registry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fico_export.models.decoders.base import DecoderForm


def form(name: str, *, per_layer: bool = False) -> DecoderForm:
    """The form called `name`, such as `in-place`.

    Args:
        name: of a target's `decoder`.
        per_layer: whether a method reduces inside the decoder, so that each layer has a length of its own.
    """
    found: DecoderForm = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").FORM
    return form(found.per_layer) if per_layer and found.per_layer else found
