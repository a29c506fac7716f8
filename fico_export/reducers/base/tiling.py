"""How a budget is shared among the tiles of an image, and which of them are reduced together.

Letters: T tiles, K visual tokens to keep of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fico_export.errors import ConfigError

Kind = Literal["per-tile", "joint", "split"]
KINDS: tuple[Kind, ...] = ("per-tile", "joint", "split")


@dataclass(frozen=True)
class Tiling:
    """What a request says of the tiles.

    Attributes:
        kind: `per-tile` reduces each tile by itself. At the projector's output, `joint` reduces all of them as one, and `split`
            the first, which shows the whole image, by itself, and the others as one.
        base_keep: tokens of K that the first tile keeps; an equal share by default. Of the larger budget of a method before the
            last of a chain, in proportion.
        masked: whether tokens that show padding are no candidates.
    """

    kind: Kind = "per-tile"
    base_keep: int | None = None
    masked: bool = False

    def together(self, tiles: int) -> tuple[int, ...]:
        """How many tiles, one after another, are reduced as one at the projector's output."""
        if self.kind == "joint":
            return (tiles,)
        return (1, tiles - 1) if self.kind == "split" else (1,) * tiles

    def shares(self, budget: int, keep: int, parts: tuple[int, ...]) -> tuple[int, ...]:
        """The budget of each part, as equal for every tile as whole numbers are; the first parts have what is left over.

        Args:
            budget: of the method.
            keep: K, the budget of the last method of the chain.
            parts: tiles of each part.

        Raises:
            ConfigError: `base_keep` leaves a part without a token.
        """
        tiles = sum(parts)
        if self.base_keep is None or len(parts) == 1:
            return _evenly(budget, parts)
        base = round(self.base_keep * budget / keep)
        if not 1 <= base <= budget - (tiles - 1):
            raise ConfigError(
                f"--base-keep {self.base_keep} of {keep} leaves the other {tiles - 1} tiles too little, or itself nothing",
                fix=f"--base-keep of 1 … {keep - tiles + 1}",
            )
        return (base, *_evenly(budget - base, parts[1:]))


EQUAL = Tiling()
"""Each tile by itself, with an equal share."""


def _evenly(budget: int, parts: tuple[int, ...]) -> tuple[int, ...]:
    """`budget` in proportion to the parts: what rounding leaves over goes to the first of them."""
    share, left = divmod(budget, sum(parts))
    found = []
    for tiles in parts:
        more = min(left, tiles)
        found.append(share * tiles + more)
        left -= more
    return tuple(found)
