"""What the methods of a plan do to the tiles of an image, one after another.

Letters: T tiles, N visual tokens of an image, K of them kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from fico_export.errors import ConfigError
from fico_export.reducers.base.reducer import Depth, Options, Reducer, Site
from fico_export.reducers.base.tiling import EQUAL, Tiling


@dataclass(frozen=True)
class Step:
    """One method of a plan.

    Attributes:
        method: the reducer's name.
        reducer: its record.
        options: its hyper-parameters.
        before: visual tokens that it is given.
        keep: visual tokens that it leaves, fewer than `before`.
        schedule: layer → live patches after it; empty at a site that is no layer.
        earlier_layer: the layer whose attention the method also reads, if any.
    """

    method: str
    reducer: Reducer[Any]
    options: Options
    before: int
    keep: int
    schedule: dict[int, int] = field(default_factory=dict)
    earlier_layer: int | None = None


@dataclass(frozen=True)
class Group:
    """Tiles, one after another, of which the same becomes.

    Attributes:
        tiles: how many.
        before: visual tokens of each of them; where they are reduced as one, of all.
        steps: likewise.
    """

    tiles: int
    before: int
    steps: tuple[Step, ...]

    @property
    def keep(self) -> int:
        """Visual tokens that are left, likewise."""
        return self.steps[-1].keep if self.steps else self.before

    def at(self, site: Site) -> Step | None:
        """The step that acts at a site."""
        return next((step for step in self.steps if step.reducer.site is site), None)


@dataclass(frozen=True)
class Limits:
    """What a model offers to a plan.

    Attributes:
        patches: visual tokens of a tile, as the merger makes them of the tower's patches.
        kept_aside: tokens besides those of a tile that reach the decoder and count in K (1 for a CLS token, else 0).
        tower: its depth.
        decoder: its depth; `used` are the layers after which a reduction still shortens a cache.
        has_cls: whether the tower has a CLS token.
        tiles: T, of an image.
        merged: whether the merger interpolates patches: then a method acts on what it makes of them, or in the decoder.
        windowed: layers of the tower, from 0, whose tokens attend within windows alone.
        lacks: cues that it cannot give, each with the reason.
        tiling: how a budget is shared among the tiles.
    """

    patches: int
    kept_aside: int
    tower: Depth
    decoder: Depth
    has_cls: bool = True
    tiles: int = 1
    merged: bool = False
    windowed: frozenset[int] = frozenset()
    lacks: Mapping[str, str] = field(default_factory=dict)
    tiling: Tiling = EQUAL

    @property
    def total(self) -> int:
        """N."""
        return self.tiles * (self.patches + self.kept_aside)


# Cues that are the attention among all tokens.
_ATTENTION = {"logits", "attention", "cls_attention", "received", "earlier"}
# Cues that a site knows of what a merger made of several patches, and of several tiles together.
_OF_MERGED = {"prompt", "valid"}
_OF_JOINED = {"valid"}


class TilesOfPlan:
    """The tiles of an image while a plan is made, method by method.

    Args:
        limits: of the model.
        keep: K, the budget of the last method.
    """

    def __init__(self, limits: Limits, keep: int) -> None:
        self._limits, self._keep = limits, keep
        self._whole = limits.patches + limits.kept_aside
        self._left = [self._whole] * limits.tiles
        self._steps: list[tuple[Step, ...]] = [()] * limits.tiles
        self.joint: tuple[Group, ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        """The tiles, with the steps of each before the decoder."""
        runs = ((steps, len(list(run))) for steps, run in groupby(self._steps))
        return tuple(Group(count, self._whole, steps) for steps, count in runs)

    def apply(self, name: str, reducer: Reducer[Any], options: Options, before: int, budget: int) -> Step:
        """One more method.

        Args:
            name: of the method.
            reducer: its record.
            options: its hyper-parameters.
            before: visual tokens that are left of the image.
            budget: visual tokens to leave.

        Returns:
            What becomes of the image as a whole.

        Raises:
            ConfigError: the model, or the way that its tiles share a budget, does not offer what the method needs.
        """
        limits = self._limits
        _require_offered(name, reducer, limits, before)
        if reducer.site is Site.DECODER_LAYER:
            return _step(name, reducer, options, before, budget, limits.decoder, 0)
        together = reducer.site is Site.PROJECTOR_OUTPUT and limits.tiling.kind != "per-tile"
        parts = limits.tiling.together(limits.tiles) if together else (1,) * limits.tiles
        found, first = [], 0
        for tiles, share in zip(parts, limits.tiling.shares(budget, self._keep, parts), strict=True):
            left = sum(self._left[first : first + tiles])
            least = tiles * limits.kept_aside + 1
            if not least <= share <= left:
                raise ConfigError(
                    f"--method {name} is to keep {share} of the {left} tokens of {'a tile' if tiles == 1 else f'{tiles} tiles'}",
                    fix="give another --keep or --base-keep, or drop --base-keep for equal shares",
                )
            aside = 0 if together else limits.kept_aside
            step = _step(name, reducer, options, left, share, limits.tower, aside)
            if together:
                found.append(Group(tiles, left, (step,) if share < left else ()))
            elif share < left:
                self._steps[first] += (step,)
                self._left[first] = share
            first += tiles
        if together:
            self.joint = tuple(found)
        schedule = _summed(self._steps, name, limits) if reducer.schedule else {}
        return replace(
            _step(name, reducer, options, before, budget, limits.tower, 0, schedule),
            before=before,
            keep=budget,
        )


def _step(
    name: str,
    reducer: Reducer[Any],
    options: Options,
    before: int,
    keep: int,
    depth: Depth,
    aside: int,
    schedule: dict[int, int] | None = None,
) -> Step:
    if schedule is None:
        schedule = reducer.schedule(before - aside, keep - aside, depth, options) if reducer.schedule else {}
    earlier = reducer.earlier_layer(depth) if reducer.earlier_layer else None
    return Step(name, reducer, options, before, keep, schedule, earlier)


def _summed(of_tiles: list[tuple[Step, ...]], name: str, limits: Limits) -> dict[int, int]:
    """Layer → live patches of all tiles after it."""
    schedules = [next((s.schedule for s in steps if s.method == name), {}) for steps in of_tiles]
    left, found = [limits.patches] * limits.tiles, {}
    for layer in sorted(set().union(*schedules)):
        left = [schedule.get(layer, now) for schedule, now in zip(schedules, left, strict=True)]
        found[layer] = sum(left)
    return found


def _require_offered(name: str, reducer: Reducer[Any], limits: Limits, before: int) -> None:
    """Refuse a method that the model does not offer what it reads."""
    decoder, tiling = reducer.site is Site.DECODER_LAYER, limits.tiling
    depth = limits.decoder if decoder else limits.tower
    if reducer.without_cls is None and not limits.has_cls:
        raise ConfigError(
            f"--method {name} needs a tower with a CLS token, and this model's has none",
            fix="choose another method: `fico list methods --verbose` says how each does without",
        )
    if (
        not decoder
        and limits.merged
        and (reducer.site is not Site.PROJECTOR_OUTPUT or reducer.cues - _OF_MERGED)
    ):
        raise ConfigError(
            f"--method {name} reads single patches, and this model joins several to one visual token",
            fix="choose a method that acts at the projector output on features alone, or in the decoder: "
            "`fico list methods --verbose`",
        )
    if not decoder:
        _require_known(name, reducer, limits)
    if "following" in reducer.cues and depth.used == depth.total:
        raise ConfigError(
            f"--method {name} reads the layer after the features, and this model takes them from the last layer",
            fix="choose another method: `fico list methods`",
        )
    if reducer.whole_grid and decoder:
        raise ConfigError(
            f"--method {name} works on the whole grid of patches, and a decoder knows the rows of a prompt, not where in an image their patches lie",
            fix="let it act before the decoder",
        )
    if reducer.whole_grid and before < limits.total:
        raise ConfigError(
            f"--method {name} works on the whole grid of patches, and here another method is to act before it",
            fix="name it first, or choose another method for this place",
        )
    if tiling.kind != "per-tile" and reducer.site is Site.PROJECTOR_OUTPUT and reducer.cues - _OF_JOINED:
        raise ConfigError(
            f"--tiling {tiling.kind} with --method {name}, which reads what each tile has by itself",
            fix="--tiling per-tile, or a method that acts at the projector output on features alone: "
            "`fico list methods --verbose`",
        )
    if tiling.masked and "valid" not in reducer.cues:
        raise ConfigError(
            f"--unpad with --method {name}, which does not tell padding from the image",
            fix=f"drop --unpad, or choose one of: {', '.join(_masking())}",
        )


def _require_known(name: str, reducer: Reducer[Any], limits: Limits) -> None:
    """Refuse a method before the decoder that reads what the tower or the merger does not know."""
    for cue in sorted(reducer.cues & limits.lacks.keys()):
        raise ConfigError(
            f"--method {name} reads {limits.lacks[cue]}",
            fix="choose another method: `fico list methods --verbose` shows what each reads",
        )
    last = limits.tower.used - 1
    read = {
        Site.ENCODER_LAYER: set(range(last + 1)),
        Site.ENCODER_OUTPUT: {last, reducer.earlier_layer(limits.tower)} if reducer.earlier_layer else {last},
    }.get(reducer.site, set())
    if reducer.cues & _ATTENTION and read & limits.windowed:
        raise ConfigError(
            f"--method {name} reads the attention among all tokens in a layer of the tower whose tokens attend within windows alone",
            fix="choose a method that acts at the projector output or in the decoder: `fico list methods --verbose`",
        )


def _masking() -> list[str]:
    """Methods that can leave padding out."""
    from fico_export import reducers

    found = ((name, reducers.get(name)) for name in reducers.names())
    return [name for name, record in found if isinstance(record, Reducer) and "valid" in record.cues]
