"""A request checked against a model: which methods act where, and how many tokens each leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fico_export import reducers
from fico_export.errors import ConfigError
from fico_export.reducers.base.reducer import Composite, Positions, Reducer, Site, TextOptions
from fico_export.reducers.base.steps import Group, Limits, Step, TilesOfPlan

__all__ = ["Group", "Limits", "ReductionPlan", "Step", "make_plan"]


@dataclass(frozen=True)
class ReductionPlan:
    """What is done to the visual tokens; a method that has nothing to remove is no step.

    Attributes:
        method: as asked for: a name, or a chain `first@K1,second@K`.
        settings: the options of all its methods, as `make_plan` takes them.
        visual_tokens: N, patches and a CLS token where the model hands it to the decoder.
        keep: K, 1 … N, left in the cache of the decoder's last layer.
        positions: the policy for position ids that the methods ask for.
        steps: in the order of their sites, with the tokens of all tiles.
        groups: the tiles, with the steps of each before the decoder.
        joint: the tiles, with the step at the projector's output of all that are reduced as one there.
        masked: whether tokens that show padding are no candidates.
    """

    method: str
    settings: dict[str, Any]
    visual_tokens: int
    keep: int
    positions: Positions
    steps: tuple[Step, ...] = ()
    groups: tuple[Group, ...] = ()
    joint: tuple[Group, ...] = ()
    masked: bool = False

    def at(self, site: Site) -> Step | None:
        """The step that acts at a site."""
        return next((step for step in self.steps if step.reducer.site is site), None)

    def reads(self, cue: str) -> bool:
        """Whether some step reads this cue."""
        return any(cue in step.reducer.cues for step in self.steps)

    @property
    def text_length(self) -> int | None:
        """Tokens of the prompt that the vision graph takes; None where no method before the decoder reads it."""
        return next((s.options.text_length for s in self.steps if isinstance(s.options, TextOptions)), None)

    @property
    def handed_over(self) -> int:
        """Visual tokens that leave the vision graph: K, unless the decoder reduces them further."""
        last = self.at(Site.DECODER_LAYER)
        return last.before if last else self.keep

    def shares(self) -> list[tuple[int, int]]:
        """Part by part: how many tiles are reduced together before the decoder, and how many visual tokens are left of them."""
        if self.joint:
            return [(group.tiles, group.keep) for group in self.joint]
        return [(1, group.keep) for group in self.groups for _ in range(group.tiles)]

    def cached(self, layers: int) -> list[int]:
        """Visual tokens in the cache of each of the decoder's layers."""
        step, live, result = self.at(Site.DECODER_LAYER), self.handed_over, []
        for layer in range(layers):
            left = step.schedule.get(layer, live) if step else live
            result.append(left if step and step.reducer.before_attention else live)
            live = left
        return result


def make_plan(method: str, keep: int | None, settings: dict[str, Any], limits: Limits) -> ReductionPlan:
    """Check a request and lay out its steps.

    Args:
        method: a reducer's name, or several with their budgets: `first@192,second@64`.
        keep: K; None means all with `none`, and the last budget of a chain.
        settings: options by name; in a chain `method.name` where two methods have one of that name.
        limits: of the model.

    Raises:
        ConfigError: unknown method or option, a budget that this model cannot have, or a chain that makes no sense.
    """
    wanted = _parse(method, keep, limits.total)
    chain = [part for name, budget in wanted for part in _parts(name, budget, wanted, settings, limits.total)]
    options = _share(settings, wanted)
    tiles, steps, before = TilesOfPlan(limits, wanted[-1][1]), list[Step](), limits.total
    for name, reducer, budget in chain:
        least = limits.tiles * (1 + limits.kept_aside)
        if not least <= budget <= limits.total:
            of_tiles = f" in {limits.tiles} tiles" if limits.tiles > 1 else ""
            raise ConfigError(
                f"{name if len(chain) > 1 else '--keep'} {budget} is outside {least} … {limits.total}, "
                f"the visual tokens this model has{of_tiles}",
                fix=f"--keep K with K in {least} … {limits.total}",
            )
        if budget > before:
            raise ConfigError(
                f"{name} is to keep {budget} of the {before} tokens that the method before it leaves",
                fix="give budgets that fall from left to right",
            )
        if budget == before:
            continue
        step = tiles.apply(name, reducer, reducer.parse_options(options.get(name, {})), before, budget)
        _check_order(steps, step)
        steps.append(step)
        before = budget
    if limits.tiling.masked and len(steps) > 1:
        raise ConfigError(
            f"--unpad with --method {method}: how many tokens show the image is held against the last budget alone",
            fix="drop --unpad, or give one method",
        )
    if limits.tiling.kind != "per-tile" and steps and not tiles.joint:
        raise ConfigError(
            f"--tiling {limits.tiling.kind} with --method {method}: tiles are joined at the projector's output, where it does nothing",
            fix="drop --tiling, or choose a method that acts there: `fico list methods --verbose`",
        )
    resolved = {
        name: reducers.get(name).parse_options(given).model_dump(mode="json")
        for name, given in options.items()
    }
    flat = {
        key if len(wanted) == 1 else f"{name}.{key}": value
        for name, values in resolved.items()
        for key, value in values.items()
    }
    positions: Positions = "compact" if all(r.positions == "compact" for _, r, _ in chain) else "original"
    return ReductionPlan(
        ",".join(name if len(wanted) == 1 else f"{name}@{budget}" for name, budget in wanted),
        flat, limits.total, wanted[-1][1], positions, tuple(steps), tiles.groups, tiles.joint,
        bool(steps) and limits.tiling.masked,
    )  # fmt: skip


def _parse(method: str, keep: int | None, total: int) -> list[tuple[str, int]]:
    """Names and budgets of a chain; the last budget may stand in `keep`."""
    result: list[tuple[str, int]] = []
    parts = [part.strip() for part in method.split(",")]
    for i, part in enumerate(parts):
        name, at, text = part.partition("@")
        reducers.get(name)
        last = i == len(parts) - 1
        if at and not text.isdecimal():
            raise ConfigError(
                f"{part!r} has no budget after @",
                fix=f"METHOD@K with a whole number K, such as {reducers.DEFAULT}@192",
            )
        budget = int(text) if at else keep if last else None
        if last and at and keep not in (None, budget):
            raise ConfigError(
                f"--keep {keep}, and --method {method} ends with {budget}",
                fix="drop --keep, or give the same number in both",
            )
        if name == "none":
            if len(parts) > 1:
                raise ConfigError("none is no part of a chain", fix="drop it")
            if budget not in (None, total):
                raise ConfigError(
                    f"--keep {budget} with --method none, which keeps all {total} visual tokens",
                    fix=f"drop --keep, or choose a method: {', '.join(n for n in reducers.names() if n != 'none')}",
                )
            budget = total
        if budget is None:
            where = (
                f"--keep K with K in 1 … {total}, such as --keep 64"
                if last
                else f"{name}@K, such as {name}@192"
            )
            raise ConfigError(f"--method {name} needs a budget", fix=where)
        result.append((name, budget))
    names = [name for name, _ in result]
    if len(set(names)) < len(names):
        raise ConfigError(f"--method {method} names a method twice", fix="name each method once")
    return result


def _parts(
    name: str, budget: int, wanted: list[tuple[str, int]], settings: dict[str, Any], total: int
) -> list[tuple[str, Reducer[Any], int]]:
    """A method as the steps that it consists of: itself, or the parts of a composite."""
    record = reducers.get(name)
    if isinstance(record, Composite):
        options = record.parse_options(_share(settings, wanted)[name])
        budgets = record.split(total, budget, options)
        return [(part, _plain(part), b) for part, b in zip(record.parts, budgets, strict=True)]
    return [(name, record, budget)]


def _plain(name: str) -> Reducer[Any]:
    record = reducers.get(name)
    assert isinstance(record, Reducer), f"{name} is a composite inside a composite"
    return record


def _share(settings: dict[str, Any], wanted: list[tuple[str, int]]) -> dict[str, dict[str, Any]]:
    """Which method each setting belongs to."""
    shared: dict[str, dict[str, Any]] = {name: {} for name, _ in wanted}
    if len(wanted) == 1:
        return {wanted[0][0]: dict(settings)}
    for key, value in settings.items():
        name, dot, option = key.rpartition(".")
        owners = [n for n in shared if key in reducers.get(n).options.model_fields]
        if dot and name in shared:
            shared[name][option] = value
        elif len(owners) == 1:
            shared[owners[0]][key] = value
        elif owners:
            raise ConfigError(
                f"--set {key}: {' and '.join(owners)} both have such an option",
                fix=f"--set {owners[0]}.{key}=…",
            )
        else:
            raise ConfigError(
                f"--set {key}: none of {', '.join(shared)} has such an option",
                fix="`fico list methods --verbose` shows each method's options",
            )
    return shared


def _check_order(steps: list[Step], step: Step) -> None:
    sites = list(Site)
    for earlier in steps:
        if sites.index(earlier.reducer.site) >= sites.index(step.reducer.site):
            raise ConfigError(
                f"{step.method} acts at the {step.reducer.site.value}, "
                f"which the tokens have passed when {earlier.method} has acted (at the {earlier.reducer.site.value})",
                fix=f"a chain goes through these sites, each at most once: {', '.join(s.value for s in sites)}",
            )
