"""Schedules that several methods share: how many tokens are left after which layer."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fico_export.errors import ConfigError


def LayersField(description: str) -> Any:  # noqa: N802 (a pydantic field, as `Field` is)
    """An option that lists layers: numbers from 0, ascending, separated by commas."""
    return Field(None, pattern=r"^\d+(,\d+)*$", description=description)


def evenly(tokens: int, keep: int, first: int, layers: int) -> dict[int, int]:
    """Drop `tokens` − `keep` evenly over the layers from `first` on; the first of them drop one more if need be."""
    base, extra = divmod(tokens - keep, layers)
    left, result = tokens, {}
    for i in range(layers):
        dropped = base + (i < extra)
        left -= dropped
        if dropped:
            result[first + i] = left
    return result


def by_equal_ratios(
    tokens: int, keep: int, asked: str | None, default: list[int], last: int
) -> dict[int, int]:
    """`tokens` to `keep` in as many steps as there are layers, each by the same ratio.

    Args:
        tokens: before the first layer.
        keep: after the last one.
        asked: the layers as an option gives them, or None.
        default: the layers otherwise; those of a shallow stack that coincide count once.
        last: the last layer that may be asked for.

    Raises:
        ConfigError: layers beyond `last`, or not ascending.
    """
    layers = [int(i) for i in asked.split(",")] if asked else sorted(set(default))
    if layers != sorted(set(layers)) or layers[-1] > last:
        raise ConfigError(
            f"layers={asked} for a decoder in which a method may act in layers 0 … {last}",
            fix=f"--set layers=A,B,C with ascending numbers of at most {last}",
        )
    counts = [round(tokens * (keep / tokens) ** ((i + 1) / len(layers))) for i in range(len(layers))]
    counts[-1] = keep
    result, before = {}, tokens
    for layer, count in zip(layers, counts, strict=True):
        if count < before:
            result[layer] = before = count
    return result
