"""Families that show an image in tiles: which graph serves which grid, and what a request may say of grids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fico_export.bundle import graph_names
from fico_export.bundle.profiles import Profile
from fico_export.errors import ConfigError, unknown_name

ALL = "all"
"""The name that stands for all profiles."""


def tile_by_tile(profiles: Iterable[Profile]) -> tuple[Profile, ...]:
    """The profiles where nothing is reduced: one graph of one tile serves every grid, since all tiles are treated alike."""
    return tuple(
        profile.model_copy(update={"input_shape": (1, *profile.input_shape[1:])}) for profile in profiles
    )


def by_count(profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """The profiles where tokens are reduced: a graph for each number of tiles. The first profile's has the plain name."""
    return tuple(
        profile
        if profile.tiles == profiles[0].tiles
        else profile.model_copy(update={"graph": _name(profile.tiles)})
        for profile in profiles
    )


def _name(tiles: int) -> str:
    return f"{graph_names.VISION}_{tiles}_tile{'s' if tiles > 1 else ''}"


def require_known(names: Iterable[str], known: Mapping[str, Profile]) -> None:
    """Refuse a profile that the model does not have.

    Raises:
        ConfigError: a name is unknown; the fix names the nearest.
    """
    for name in names:
        if name not in (*known, ALL):
            raise unknown_name("profile", name, (*known, ALL))


def require_a_method(given: Mapping[str, object]) -> None:
    """Refuse flags that only a reduction has a use for, under --method none.

    Args:
        given: Value of each flag; None is not given.

    Raises:
        ConfigError: one is given.
    """
    for flag, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{flag} {value} with --method none, which keeps all that the model was trained on",
                fix=f"drop {flag}, or choose a method: `fico list methods`",
            )
