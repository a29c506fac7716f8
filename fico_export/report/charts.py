"""Charts as SVG to set into a page, whose colours are the page's own: `var(--ink)`, `var(--series-1)` and so on.

So one drawing serves light, dark and print. Text stays text. matplotlib draws; it is imported when a chart is asked for.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fico_export.bundle.output import require_matplotlib
from fico_export.profile.record import Measured, Run
from fico_export.report.evidence import Evaluated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WHAT = "the charts of a report"
SERIES = 8  # colours of series in the page, and marks
MARKS = "osD^vPX*"
TTFT_STAGES = ("preprocess", "vision", "embed", "prefill")
_WIDTH = 5.4  # inches: about the width of a phone's screen, so that text stays readable there
_LABEL = 26  # characters

# Colours that nothing else has, each to become a variable of the page.
_INK, _FAINT, _PAPER = "#fe00f0", "#fe00f1", "#fe00f2"
_COLOURS = tuple(f"#fe00{i:02x}" for i in range(SERIES))
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", _PAPER: "--paper"} | {
    colour: f"--series-{i}" for i, colour in enumerate(_COLOURS)
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.parse_math": False,  # a bundle may have a dollar sign in its name
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "legend.facecolor": "none",
    "legend.edgecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def stages(run: Run) -> str:
    """The stages up to the first token, one after another, a row a bundle."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = labels(run.bundles)
        for row, entry in enumerate(run.bundles):
            begin = 0.0
            for i, stage in enumerate(TTFT_STAGES):
                length = entry.stages[stage].median if stage in entry.stages else 0.0
                axes.barh(
                    row, length, 0.62, begin, color=_COLOURS[i], edgecolor=_PAPER, linewidth=0.8,
                    label=stage if row == 0 else None,
                )  # fmt: skip
                begin += length
            axes.annotate(f" {entry.ttft.median:.3g} ms", (begin, row), va="center")
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_xlabel("milliseconds, medians")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=4, fontsize=10)

    return _svg(draw, 1.1 + 0.36 * len(run.bundles), f"stages {run.created}")


def sweep(run: Run) -> str:
    """Time to the first token, and per further token, over the tokens kept; a line a method."""

    def draw(figure: Figure) -> None:
        for axes, field, name in zip(
            figure.subplots(1, 2),
            ("ttft", "tpot"),
            ("to first token, ms", "per token after it, ms"),
            strict=True,
        ):
            for i, (method, entries) in enumerate(by_method(run.bundles).items()):
                spreads = [(e.keep, getattr(e, field)) for e in entries if getattr(e, field) is not None]
                if not spreads:
                    continue
                x = [keep for keep, _ in spreads]
                y = [s.median for _, s in spreads]
                low = [max(0.0, s.median - s.p10) for _, s in spreads]
                high = [max(0.0, s.p90 - s.median) for _, s in spreads]
                axes.errorbar(x, y, [low, high], **_mark(i), capsize=2, linewidth=1.4,
                              label=(method if method != "none" else "all tokens") if field == "ttft" else None)  # fmt: skip
            _kept_axis(axes, sorted({entry.keep for entry in run.bundles}))
            axes.set_ylim(bottom=0)
            axes.set_title(name, fontsize=11)
        figure.legend(loc="outside upper center", ncols=3, fontsize=10)

    return _svg(draw, 3.6, f"sweep {run.created}")


def pareto(points: Sequence[tuple[Measured, Evaluated]], created: str) -> str:
    """Accuracy against the time to the first token; the line joins what nothing beats in both."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        best = sorted(((m.ttft.median, 100 * e.accuracy) for m, e in frontier(points)))
        axes.plot(
            *zip(*best, strict=True), color=_INK, linewidth=0.9, linestyle="--", label="not beaten in both"
        )
        entries = by_method([m for m, _ in points])
        for i, method in enumerate(entries):
            mine = [(m, e) for m, e in points if m.method == method]
            axes.errorbar(
                [m.ttft.median for m, _ in mine], [100 * e.accuracy for _, e in mine],
                [100 * e.half_width for _, e in mine], **{**_mark(i), "linestyle": "none"}, capsize=2,
                label=method if method != "none" else "all tokens",
            )  # fmt: skip
            for measured, result in mine:
                axes.annotate(
                    str(measured.keep), (measured.ttft.median, 100 * result.accuracy), xytext=(5, 5),
                    textcoords="offset points", fontsize=10,
                )  # fmt: skip
        axes.set_xlabel("to first token, ms (median); the number is K")
        axes.set_ylabel("answered right, %")
        axes.set_xlim(left=0)
        axes.margins(x=0.1, y=0.12)
        axes.grid()
        figure.legend(loc="outside upper center", ncols=3, fontsize=10)

    return _svg(draw, 4.0, f"pareto {created}")


def frontier(points: Sequence[tuple[Measured, Evaluated]]) -> list[tuple[Measured, Evaluated]]:
    """The points that no other beats in time and accuracy both."""

    def beaten(point: tuple[Measured, Evaluated]) -> bool:
        mine = (point[0].ttft.median, -point[1].accuracy)
        others = ((m.ttft.median, -e.accuracy) for m, e in points)
        return any(o[0] <= mine[0] and o[1] <= mine[1] and o != mine for o in others)

    return [point for point in points if not beaten(point)]


def memory(run: Run) -> str:
    """The most memory that each bundle took while it answered."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = labels(run.bundles)
        kinds = {
            name: [getattr(e, f"{name}_peak_bytes") or 0 for e in run.bundles] for name in ("host", "device")
        }
        told = {name: sizes for name, sizes in kinds.items() if any(sizes)}
        for i, (name, peaks) in enumerate(told.items()):
            sizes = [peak / 2**20 for peak in peaks]
            rows = [row + 0.36 * (i - (len(told) - 1) / 2) for row in range(len(sizes))]
            axes.barh(rows, sizes, 0.34, color=_COLOURS[i], label=name)
            for row, size in zip(rows, sizes, strict=True):
                axes.annotate(f" {size:.4g} MiB" if size else " –", (size, row), va="center", fontsize=10)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(x=0.26)
        axes.set_xlabel("MiB at most")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=2, fontsize=10)

    return _svg(draw, 1.1 + 0.42 * len(run.bundles), f"memory {run.created}")


def labels(entries: Sequence[Measured]) -> list[str]:
    """What tells the bundles of a run apart: method and K, or their names where these do not."""
    short = [f"{e.method}, {e.keep}" if e.method != "none" else f"all {e.visual_tokens}" for e in entries]
    shown = short if len(set(short)) == len(short) else [e.name for e in entries]
    return [plain(label) for label in shown]


def plain(text: str) -> str:
    """At most so many characters, all of which can be printed."""
    clean = "".join(c if c.isprintable() else "�" for c in text)
    return clean if len(clean) <= _LABEL else f"{clean[: _LABEL - 1]}…"


def by_method(entries: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Entries by method, by K ascending within each."""
    found: dict[str, list[Measured]] = {}
    for entry in sorted(entries, key=lambda e: e.keep):
        found.setdefault(entry.method, []).append(entry)
    return found


def _mark(i: int) -> dict[str, Any]:
    return {"color": _COLOURS[i % SERIES], "marker": MARKS[i % len(MARKS)], "markersize": 6}


def _kept_axis(axes: Axes, kept: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(kept, [str(k) for k in kept], rotation=45 if len(kept) > 5 else 0)
    axes.minorticks_off()
    axes.set_xlabel("visual tokens kept")
    axes.grid()


def _svg(draw: Callable[[Figure], None], height: float, name: str) -> str:
    """What `draw` draws, as an <svg> element that names no address; `name` makes its ids its own on the page."""
    require_matplotlib(WHAT)
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    content = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a name may have characters that the font lacks; the page's font draws it
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(content, format="svg", metadata=nothing)
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # within HTML an <svg> needs none
    svg = re.sub(
        r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL
    )  # a style would be the whole page's
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # no one refers to a group, and another chart has the same
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    # A font's name in the style of each text would win over the page's font.
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    return re.sub("|".join(_VARIABLES), lambda found: f"var({_VARIABLES[found[0]]})", svg)
