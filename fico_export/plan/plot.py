"""A sweep as a chart: time to the first token and tokens a second over K, a line for each precision, their ranges shaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fico_export.bundle.belongings import MADE_BY
from fico_export.bundle.output import require_matplotlib, written_file
from fico_export.errors import ConfigError
from fico_export.plan.roofline import Range

if TYPE_CHECKING:
    from fico_export.plan.planner import Estimate

SUFFIXES = (".png", ".svg", ".pdf")


def draw(estimates: Sequence[Estimate], path: Path) -> None:
    """Write the plot, as PNG, SVG or PDF by the name of the file.

    Raises:
        ConfigError: matplotlib is missing, the estimates have no times, or the file cannot be written.
    """
    timed = [(e, speed) for e in estimates if (speed := e.fastest)]
    if not timed:
        raise ConfigError(
            "there are no times to draw: the peak or the bandwidth of the device is not known",
            fix="--device NAME of one whose peak `fico list devices --verbose` shows, or drop --out",
        )
    require_matplotlib("plots")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    first, rate = figure.subplots(1, 2)
    for precision in dict.fromkeys(e.precision for e, _ in timed):
        line = sorted(((e.keep, s) for e, s in timed if e.precision == precision), key=lambda pair: pair[0])
        keeps = [keep for keep, _ in line]
        _line(first, keeps, [speed.first_token_ms for _, speed in line], precision)
        _line(rate, keeps, [speed.tokens_per_second for _, speed in line], precision)
    one, speed = timed[0]
    first.set(xlabel="visual tokens K", ylabel="ms to the first token, estimate", yscale="log")
    rate.set(xlabel="visual tokens K", ylabel="tokens a second, estimate", yscale="log")
    first.legend(title="precision")
    figure.suptitle(f"{one.method} on {one.device} {speed.mode}".strip())
    with written_file(path) as partial:
        kind = path.suffix.lower().removeprefix(".")
        mark = {"Software" if kind == "png" else "Creator": MADE_BY}
        figure.savefig(partial, format=kind, dpi=150, metadata=mark)


def _line(axes: object, keeps: list[int], ranges: list[Range], label: str) -> None:
    axes.plot(keeps, [r.likely for r in ranges], marker="o", label=label)  # type: ignore[attr-defined]
    axes.fill_between(keeps, [r.least for r in ranges], [r.most for r in ranges], alpha=0.15)  # type: ignore[attr-defined]
