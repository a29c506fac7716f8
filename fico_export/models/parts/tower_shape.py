"""The shape of a square tower in a config.json, of every family that has one: CLIP, SigLIP, InternViT."""

from __future__ import annotations

from typing import Any, TypeVar

from fico_export.models.towers.clip import ClipConfig

ShapeT = TypeVar("ShapeT", bound=ClipConfig)


def tower_shape(kind: type[ShapeT], vision: Any, *, layers: int | None = None, **own: Any) -> ShapeT:
    """Shape of the tower that a `vision_config` of transformers describes.

    Args:
        kind: of the shape.
        vision: the `vision_config`.
        layers: how many feed the merger; all by default.
        own: what only this tower has.
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
    """The side of a square, which some families give as two equal ones."""
    return value[0] if isinstance(value, (list, tuple)) else value
