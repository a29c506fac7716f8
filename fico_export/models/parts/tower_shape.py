"""The shape of a square tower (CLIP, SigLIP, InternViT) as config.json describes it."""

from __future__ import annotations

from typing import Any, TypeVar

from fico_export.models.towers.clip import ClipConfig

ShapeT = TypeVar("ShapeT", bound=ClipConfig)


def tower_shape(kind: type[ShapeT], vision: Any, *, layers: int | None = None, **own: Any) -> ShapeT:
    """The shape that transformers' `vision_config` gives.

    Args:
        kind: Class of the shape.
        vision: The `vision_config`.
        layers: Number of layers that feed the merger; all by default.
        own: Fields of the shape that only this kind of tower has.
    """
    total = vision.num_hidden_layers
    return kind(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        layers=total if layers is None else layers,
        total_layers=total,
        heads=vision.num_attention_heads,
        image_size=side_of(vision.image_size),
        patch_size=side_of(vision.patch_size),
        activation=vision.hidden_act,
        norm_eps=vision.layer_norm_eps,
        **own,
    )


def side_of(value: Any) -> Any:
    """Side of a square, which some families write as a pair: `[448, 448]`."""
    return value[0] if isinstance(value, (list, tuple)) else value
