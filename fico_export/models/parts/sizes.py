"""Bounds of the sizes in config.json: a slip or a hostile file must not keep a machine busy building a model of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fico_export.errors import CheckpointError

# Each several times the largest that is published.
_MOST = {
    "num_hidden_layers": 512,
    "hidden_size": 2**16,
    "intermediate_size": 2**19,
    "num_attention_heads": 2**10,
    "num_key_value_heads": 2**10,
    "head_dim": 2**12,
    "vocab_size": 2**22,
    "max_position_embeddings": 2**27,
    "image_size": 2**13,
    "patch_size": 2**13,
    "num_channels": 2**6,
}
_PATCHES = 2**14  # a side of 128 patches
_PARTS = ("text_config", "vision_config")


def check(config: dict[str, Any], path: Path) -> None:
    """Refuse sizes beyond every model there is.

    Args:
        config: content of a config.json; what is no number is left to those who read it.
        path: of the file, for errors.

    Raises:
        CheckpointError: naming the size and its bound.
    """
    for part in (None, *_PARTS):
        values = config if part is None else config.get(part)
        if not isinstance(values, dict):
            continue
        for name, most in _MOST.items():
            value = values.get(name)
            if isinstance(value, int | float) and not 1 <= value <= most:
                raise _beyond(f"{path}: {name} {value}{f' in {part}' if part else ''}", f"1 … {most}")
        image, patch = values.get("image_size"), values.get("patch_size")
        if isinstance(image, int) and isinstance(patch, int) and (image // patch) ** 2 > _PATCHES:
            raise _beyond(
                f"{path}: image_size {image} of patches of {patch} in {part}",
                f"at most {_PATCHES} patches",
            )


def _beyond(what: str, bound: str) -> CheckpointError:
    return CheckpointError(
        f"{what} is beyond every model: {bound}", fix="use the config.json that was published with this model"
    )
