"""Recipes: an export as a TOML file, for deployments that are made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fico_export import tables
from fico_export.tables import Record


class Recipe(Record):
    """What to export; each key is the option of `fico-export` with its name, `settings` those of --set.

    What is absent is what the command takes by default: target and precision follow from the device.
    """

    description: str
    model: str
    method: str | None = None
    keep: int | None = Field(None, ge=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    precision: str | None = None
    block: int | None = None
    quantize_head: str | None = None
    quantize_vision: str | None = None
    target: str | None = None
    device: str | None = None
    max_context: int | None = Field(None, ge=1)
    positions: Literal["compact", "original"] | None = None
    clip_text: str | None = None
    revision: str | None = None

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe.

        Raises:
            ConfigError: it cannot be read, or a key is unknown or wrong.
        """
        return tables.checked(cls, tables.read(path), str(path))

    def with_flags(self, flags: dict[str, Any]) -> dict[str, Any]:
        """The options of an export: the recipe's, and the flags that were given instead of its own.

        Args:
            flags: by the recipe's names; None is a flag that was not given, and any other value wins, 0, "" and False too.
        """
        written = self.model_dump(exclude={"description"})
        given = {name: value for name, value in flags.items() if value is not None}
        return written | given | {"settings": self.settings | given.get("settings", {})}
