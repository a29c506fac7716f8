"""A request checked against a model: which method acts where, and how many tokens it leaves at each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fico_export import reducers
from fico_export.errors import ConfigError
from fico_export.reducers.base.reducer import Depth, Options, Reducer, Site


@dataclass(frozen=True)
class Plan:
    """What the vision graph does to its tokens.

    Attributes:
        method: the reducer's name.
        reducer: its record.
        options: its hyper-parameters.
        visual_tokens: N, patches and a CLS token where the model hands it to the decoder.
        keep: K, 1 … N.
        schedule: encoder layer → live patches after it; empty for the other sites.
        earlier_layer: the layer whose attention the method also reads, if any.
    """

    method: str
    reducer: Reducer[Any]
    options: Options
    visual_tokens: int
    keep: int
    schedule: dict[int, int] = field(default_factory=dict)
    earlier_layer: int | None = None

    def reads(self, cue: str) -> bool:
        """Whether the method reads this cue; with K = N no method does."""
        return cue in self.reducer.cues and self.keep < self.visual_tokens

    def acts_at(self, site: Site) -> bool:
        """Whether the method does anything at this site; with K = N no method does."""
        return self.reducer.site is site and self.keep < self.visual_tokens


def make_plan(
    method: str, keep: int | None, settings: dict[str, Any], patches: int, kept_aside: int, depth: Depth
) -> Plan:
    """Check a request and lay out its schedule.

    Args:
        method: a reducer's name.
        keep: K; None means all, which only `none` accepts.
        settings: the method's options by name.
        patches: patch tokens of the tower.
        kept_aside: tokens besides the patches that reach the decoder and count in K (1 for a CLS token, else 0).
        depth: of the tower.

    Raises:
        ConfigError: unknown method or option, or a budget that this model cannot have.
    """
    reducer = reducers.get(method)
    options = reducer.parse_options(settings)
    total = patches + kept_aside
    if method == "none":
        if keep not in (None, total):
            raise ConfigError(
                f"--keep {keep} with --method none, which keeps all {total} visual tokens",
                mend=f"drop --keep, or choose a method: {', '.join(n for n in reducers.names() if n != 'none')}",
            )
        keep = total
    if keep is None:
        raise ConfigError(
            f"--method {method} needs a budget", mend=f"--keep K with K in 1 … {total}, such as --keep 64"
        )
    least = 1 + kept_aside
    if not least <= keep <= total:
        raise ConfigError(
            f"--keep {keep} is outside {least} … {total}, the visual tokens this model has",
            mend=f"--keep K with K in {least} … {total}",
        )
    schedule: dict[int, int] = {}
    if reducer.schedule is not None and keep < total:
        schedule = reducer.schedule(patches, keep - kept_aside, depth, options)
    earlier = reducer.earlier_layer(depth) if reducer.earlier_layer and keep < total else None
    made = Plan(method, reducer, options, total, keep, schedule, earlier)
    if made.reads("following") and depth.used == depth.total:
        raise ConfigError(
            f"--method {method} reads the layer after the features, and this model takes them from the last layer",
            mend="choose another method: `fico list methods`",
        )
    return made
