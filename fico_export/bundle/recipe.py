"""Recipes: an export as a TOML file, for deployments that are made again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fico_export import tables
from fico_export.errors import ConfigError
from fico_export.options import ExportOptions, options


@dataclass(frozen=True, kw_only=True)
class Recipe(ExportOptions):
    """What to export, and what it is for; each key is an option of `fico-export`, `settings` those of --set.

    Options of one machine and one run, such as `out` and `overwrite`, are none: who is given a recipe decides on them.

    What is absent is what the command takes by default: target and precision follow from the device.
    """

    description: str

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe.

        Raises:
            ConfigError: it cannot be read, or a key is missing, unknown or wrong.
        """
        content = tables.read(path)
        for option in options(cls):
            if option.about.local and option.name in content:
                raise ConfigError(
                    f"{path}: {option.name!r} is of one machine and one run, and no part of a recipe",
                    fix=f"drop it, and give {option.flag} beside --recipe",
                )
        made = cls.of(content, str(path))
        if "model" not in content:
            raise ConfigError(f"{path}: 'model' is missing", fix="add model")
        return made

    def with_flags(self, flags: dict[str, Any]) -> dict[str, Any]:
        """The options of an export: the recipe's, and the flags that were given instead of its own.

        Args:
            flags: by the recipe's names; any value wins, 0, "" and False too.
        """
        written = vars(self) | flags
        del written["description"]
        return written | {"settings": self.settings | flags.get("settings", {})}
