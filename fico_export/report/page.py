"""The page: everything inline, nothing fetched, no script. What is not known is said, with the command that makes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fico_export.bundle.manifest import Manifest
from fico_export.profile.record import Measured, Run, Spread
from fico_export.report import charts
from fico_export.report.evidence import Evaluated, accuracy_of, measures
from fico_export.report.gallery import Item
from fico_export.runtime.answer import STAGES

if TYPE_CHECKING:
    from fico_export.report.graphs import Statistics

_TEMPLATES = Path(__file__).parent / "templates"
_OPERATORS = 6  # of a graph, named
_NAMED = 3  # bundles in the title


@dataclass(frozen=True)
class Bundle:
    """What the page tells of a bundle; `statistics` None where the graphs were not read."""

    folder: Path
    manifest: Manifest
    statistics: list[Statistics] | None


@dataclass(frozen=True)
class Content:
    """All that a page is made of; `notes` says what is missing, and why, by section."""

    bundles: list[Bundle]
    runs: list[Run] = field(default_factory=list)
    results: list[Evaluated] | None = None
    gallery: list[Item] = field(default_factory=list)
    prompt: str | None = None
    notes: dict[str, list[str]] = field(default_factory=dict)
    made: str = ""


@dataclass(frozen=True)
class Table:
    """Rows beneath a head; the first cell of each names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A chart, what it shows in words, and its numbers."""

    title: str
    says: str
    svg: Markup | None
    table: Table | None = None
    notes: Sequence[str] = ()


def render(content: Content) -> str:
    """The page, HTML.

    Raises:
        ConfigError: there is something to draw, and no matplotlib.
    """
    # StrictUndefined: a misspelt name is an error, not a gap on the page.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=_title([bundle.manifest.name for bundle in content.bundles]),
        made=content.made,
        summary=_summary(content.bundles),
        runs=[
            (f"measured {run.created} on {run.machine.name}", _measured(run, content)) for run in content.runs
        ],
        memory=_memory(content.bundles),
        graphs=_graphs(content.bundles),
        environment=[*_tools(content.bundles), *map(_machine, content.runs)],
        gallery=content.gallery,
        prompt=content.prompt,
        notes=content.notes,
    )


def _title(names: list[str]) -> str:
    return (
        ", ".join(names)
        if len(names) <= _NAMED
        else f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    )


def _summary(bundles: Sequence[Bundle]) -> Table:
    head = [
        "bundle",
        "model",
        "method",
        "visual tokens",
        "precision",
        "target",
        "device",
        "positions",
        "options",
    ]
    rows = []
    for bundle in bundles:
        made = bundle.manifest
        reduction = made.reduction
        options = ", ".join(f"{k}={v}" for k, v in reduction.options.items() if v is not None)
        steps = "; ".join(f"{s.method} at the {s.site}" for s in reduction.steps)
        rows.append(
            [made.name, made.model.source, f"{reduction.method}{f' ({steps})' if steps else ''}",
             f"{reduction.visual_tokens} → {reduction.keep}", made.precision, made.target, made.device or "–",
             reduction.positions, options or "–"]
        )  # fmt: skip
    return Table(head, rows)


def _measured(run: Run, content: Content) -> list[Chart]:
    names = charts.labels(run.bundles)
    order = (
        "one bundle after another, for want of memory, so that ratios hold the machine's drift too"
        if run.in_turn
        else "in alternation"
    )
    about = (
        f"Asked about {run.picture or 'an image drawn by code'}: {run.prompt} {run.iterations} answers of each bundle, {order}, "
        f"after {run.warm_up} to warm up"
    )
    made = [
        Chart("Waterfall to the first token", "Stages to the first token, a bar a bundle; the numbers are in the table.",
              Markup(charts.stages(run)), _stage_table(run, names), [f"{about}; milliseconds: medians (10th to 90th percentile). A bar is the sum of its stages' medians, the number at its end the median time to the first token."]),
        *_parts(run, names),
        *_ratios(run, names),
    ]  # fmt: skip
    if len({entry.keep for entry in run.bundles}) > 1:
        says = "Time to the first token and per token after it over the visual tokens kept, a line a method."
        made.append(Chart("K sweep", says, Markup(charts.sweep(run)), _sweep_table(run, names),
                          ["Medians; bars from the 10th to the 90th percentile."]))  # fmt: skip
    else:
        note = "One budget was measured. `fico profile BUNDLE BUNDLE…` with bundles of several K makes the sweep."
        made.append(Chart("K sweep", "", None, notes=[note]))
    made += [_pareto(run, content), _peaks(run, names)]
    return made


def _stage_table(run: Run, names: list[str]) -> Table:
    head = [
        "bundle",
        *STAGES,
        "to first token",
        "per token",
        "end to end",
        "stages of it",
        "tokens/s",
        "backend",
        "prompt + new tokens",
    ]
    rows = [
        [name, *(_spread(entry.stages.get(stage)) for stage in STAGES), _spread(entry.ttft), _spread(entry.tpot),
         _spread(entry.end_to_end), _percent(entry.coverage), _number(entry.tokens_per_second), entry.backend,
         f"{entry.prompt_tokens} + {entry.new_tokens}"]
        for name, entry in zip(names, run.bundles, strict=True)
    ]  # fmt: skip
    return Table(head, rows)


def _parts(run: Run, names: list[str]) -> list[Chart]:
    """What the vision stage is made of, where a bundle tells."""
    parts = list(dict.fromkeys(part for entry in run.bundles for part in entry.vision_parts))
    told = [
        (n, e) for n, e in zip(names, run.bundles, strict=True) if e.vision_parts or e.reducer_ms is not None
    ]
    if not told:
        return []
    rows = [
        [name, *(_percent(entry.vision_parts.get(part)) for part in parts), _number(entry.reducer_ms)]
        for name, entry in told
    ]
    note = "Shares of the vision graph's time; or, where they are not told, its time less that of a bundle without reduction."
    return [
        Chart(
            "Within the vision stage",
            "",
            None,
            Table(["bundle", *parts, "more than without, ms"], rows),
            [note],
        )
    ]


def _ratios(run: Run, names: list[str]) -> list[Chart]:
    """Where there is a second bundle to set against the first."""
    if len(run.bundles) < 2 or not run.ratios:
        return []
    table = Table(
        ["measure", *names], [[measure, *map(_number, values)] for measure, values in run.ratios.items()]
    )
    note = f"Medians over those of {names[0]}; below 1 is faster."
    return [Chart("Ratios to the first bundle", "", None, table, [note])]


def _sweep_table(run: Run, names: list[str]) -> Table:
    ordered = sorted(zip(names, run.bundles, strict=True), key=lambda pair: (pair[1].method, pair[1].keep))
    rows = [[name, str(e.keep), _spread(e.ttft), _spread(e.tpot)] for name, e in ordered]
    return Table(["bundle", "K", "to first token, ms", "per token, ms"], rows)


def _pareto(run: Run, content: Content) -> Chart:
    title = "Accuracy against latency"
    if content.results is None:
        note = "No evaluation was given. `python scripts/evaluate.py` makes one for the demo model: --evaluation results.json"
        return Chart(title, "", None, notes=[note])
    points: list[tuple[Measured, Evaluated]] = []
    for entry in run.bundles:
        matched = (b.manifest for b in content.bundles if measures(entry, b.manifest))
        if (manifest := next(matched, None)) is None:
            continue
        positions = manifest.reduction.positions
        if (found := accuracy_of(content.results, entry.method, entry.keep, positions)) is not None:
            points.append((entry, found))
    if not points:
        note = "The evaluation has no method and budget that was measured and is in this report."
        return Chart(title, "", None, notes=[note])
    best = charts.frontier(points)
    rows = [
        [f"{m.method}, {m.keep}", _number(m.ttft.median), f"{100 * e.accuracy:.1f} ± {100 * e.half_width:.1f}", e.policy,
         "no" if (m, e) in best else "yes"]
        for m, e in points
    ]  # fmt: skip
    head = ["method, K", "to first token, ms", "answered right, %", "positions", "beaten in both"]
    notes = [
        "Mean over kinds of questions ± half of its 95 % interval. An evaluation does not name its model: it must be this one."
    ]
    says = "Share of questions answered right against the time to the first token, a point a bundle."
    return Chart(title, says, Markup(charts.pareto(points, run.created)), Table(head, rows), notes)


def _peaks(run: Run, names: list[str]) -> Chart:
    title, known = "Peak memory", [(e.host_peak_bytes, e.device_peak_bytes) for e in run.bundles]
    if not any(host or device for host, device in known):
        return Chart(title, "", None, notes=["The machine did not tell the peak memory."])
    rows = [
        [name, _size(e.host_peak_bytes), _size(e.host_answering_bytes), _size(e.device_peak_bytes)]
        for name, e in zip(names, run.bundles, strict=True)
    ]
    says = "Most memory that each bundle took, of the host and of the device."
    return Chart(
        title, says, Markup(charts.memory(run)), Table(["bundle", "host", "after loading", "device"], rows)
    )


def _memory(bundles: Sequence[Bundle]) -> Table:
    """What a bundle's weights and caches take by its manifest."""
    rows = []
    for bundle in bundles:
        made, decoder = bundle.manifest, bundle.manifest.decoder
        disk = sum(file.size for name, file in made.files.items() if name.startswith("onnx/"))
        specs = (spec for graph in made.graphs.values() for spec in graph.inputs)
        cache = next((spec.dtype for spec in specs if spec.name == "past_key_values.0.key"), made.precision)
        row_bytes = 2 * decoder.kv_heads * decoder.head_dim * (4 if cache in ("float32", "fp32") else 2)
        visual, whole = sum(made.reduction.cached), made.reduction.visual_tokens * decoder.layers
        rows.append(
            [made.name, _size(disk), _size(row_bytes * decoder.layers), _size(row_bytes * visual), _size(row_bytes * whole),
             _size(row_bytes * decoder.layers * (made.cache_rows or decoder.context))]
        )  # fmt: skip
    head = [
        "bundle",
        "graphs and weights on disk",
        "cache per token",
        "cache of an image",
        "… with all tokens",
        "cache when full",
    ]
    return Table(head, rows)


def _graphs(bundles: Sequence[Bundle]) -> Table | None:
    rows = []
    for bundle in bundles:
        for graph in bundle.statistics or []:
            often = list(graph.operators.items())
            named = ", ".join(f"{name} {n}" for name, n in often[:_OPERATORS])
            rest = f", {len(often) - _OPERATORS} more" if len(often) > _OPERATORS else ""
            weights = ", ".join(f"{kind} {_size(size)}" for kind, size in graph.weight_bytes.items())
            unit = "per token" if graph.per_token else "per picture"
            rows.append(
                [f"{bundle.manifest.name}: {graph.name}", f"{graph.nodes:,}", f"{graph.reducer_nodes:,}", f"{named}{rest}",
                 weights or "–", f"{_flops(graph.flops)} {unit}" if graph.flops else "–"]
            )  # fmt: skip
    head = ["graph", "nodes", "of these the reducer's", "operators", "weights", "FLOPs"]
    return Table(head, rows) if rows else None


def _tools(bundles: Sequence[Bundle]) -> list[tuple[str, Table]]:
    tables = []
    for bundle in bundles:
        made = bundle.manifest
        rows = [["made", made.created], ["opset, IR", f"{made.opset}, {made.ir_version}"]]
        rows += [["revision", made.model.revision]] if made.model.revision else []
        rows += [[tool, version] for tool, version in made.tools.items()]
        tables.append((f"{made.name}, exported with", Table(["tool", "version"], rows)))
    return tables


def _machine(run: Run) -> tuple[str, Table]:
    machine = run.machine
    rows = [
        [name, str(value)]
        for name, value in (
            ("system", machine.system), ("CPU", machine.cpu), ("cores", machine.cores), ("GPU", machine.gpu),
            ("driver", machine.driver), ("power mode", machine.power_mode),
        )
        if value is not None
    ]  # fmt: skip
    rows += [
        [f"clock of {name}", f"{first:g} MHz, at the end {last:g} MHz"]
        for name, (first, last) in machine.clocks_mhz.items()
    ]
    rows += [[tool, version] for tool, version in machine.versions.items()]
    return f"{machine.name}, measured on {run.created}", Table(["of the machine", ""], rows)


def _spread(spread: Spread | None) -> str:
    return (
        "–" if spread is None else f"{_number(spread.median)} ({_number(spread.p10)}–{_number(spread.p90)})"
    )


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"


def _size(count: int | None) -> str:
    if not count:
        return "–"
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _flops(count: int) -> str:
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:.4g} {unit}FLOP"
    return f"{count} FLOP"
