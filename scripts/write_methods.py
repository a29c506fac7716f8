#!/usr/bin/env python3
"""Write docs/methods.md from the reducers' files: what each does, its options, its cost, its published accuracy.

    python scripts/write_methods.py               # all of it, ten minutes on two cores
    python scripts/write_methods.py --text-only   # leaves the costs as they stand on the page

Costs are counted in graphs of LLaVA-1.5-7B's shapes, traced without weights (`hollow.py`).
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hollow
import onnx_ir as ir

from fico_export import models, reducers
from fico_export.cli.listing import describe_method
from fico_export.devices import targets
from fico_export.errors import ConfigError
from fico_export.exporter import trace, weights
from fico_export.exporter.cost import Cost, cost, count, of_reducer
from fico_export.exporter.graphs import graph_jobs
from fico_export.models.source import Architecture, SourceModel
from fico_export.reducers.base.plan import ReductionPlan
from fico_export.reducers.base.reducer import Reducer, Site

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
KEEP, TEXT_TOKENS = 64, 60  # the budget of the costs; a prompt's other tokens, as the papers count them
BUDGETS = (192, 128, 64, 32)
TILED = (640, 320, 160)


class Shown(NamedTuple):
    """A family of the table, by one of its models."""

    name: str
    alias: str


FAMILIES = (
    Shown("LLaVA-1.5", "llava-1.5-7b"),
    Shown("LLaVA-NeXT", "llava-v1.6-mistral-7b"),
    Shown("LLaVA-OneVision", "llava-onevision-qwen2-0.5b"),
    Shown("Qwen2.5-VL", "qwen2.5-vl-3b"),
    Shown("Qwen3-VL", "qwen3-vl-2b"),
    Shown("InternVL3", "internvl3-1b"),
    Shown("SmolVLM", "smolvlm2-256m"),
)
Costs = dict[str, tuple[str, ...]]  # method → its cells of the table of costs


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--text-only", action="store_true", help="keep the costs that the page has")
    if parser.parse_args().text_only:
        costs = costs_on(PAGE.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory(prefix="fico-methods-") as folder:
            costs = measured_costs(Path(folder))
    PAGE.write_text(page(costs), encoding="utf-8")
    print(PAGE)


# ---- the page


def page(costs: Costs) -> str:
    """All of docs/methods.md."""
    parts = (_introduction(), _of_families(), _cost_table(costs), _accuracy(), _in_tiles(), _methods())
    return "\n".join(line for part in parts for line in part) + "\n"


def costs_on(text: str) -> Costs:
    """The cells that a page has in its table of costs."""
    rows = [line.strip("| ").split(" | ") for line in text.split("## Cost")[1].split("## ")[0].splitlines()]
    return {row[0].strip("`"): tuple(row[1:]) for row in rows if row[0].startswith("`")}


def _introduction() -> Iterator[str]:
    yield "# Methods\n\n<!-- made by scripts/write_methods.py from fico_export/reducers/ -->\n"
    yield _prose(
        "Every method answers three questions. **Filter**: which tokens are redundant? **Correlate**: where should their "
        "information go? **Compress**: how is it merged there? A method that only drops tokens answers the first. It acts at one "
        "**site**: in layers of the tower (encoder layer), on the tower's output (encoder output), on what the decoder will "
        "read (projector output), or in layers of the decoder. Methods of different sites chain: "
        "`--method first@192,second@64`. All are training-free, and all keep exactly K tokens, in raster order, with their "
        "original position ids unless told otherwise. What a method may read besides the tokens are its **cues** "
        "(`fico_export/reducers/base/cues.py`). How to add one: [add-a-reducer.md](add-a-reducer.md)."
    )
    yield from _table(["method", "site", "filter", "correlate", "compress"])
    for name in reducers.names():
        about = describe_method(name)
        yield _row(
            f"[`{name}`](#{name})", *(about[key] for key in ("site", "filter", "correlate", "compress"))
        )


def _of_families() -> Iterator[str]:
    yield "\n## Families\n"
    yield _prose(
        "Which method can be exported with which model, as the code decides it: ✓, or a number that says below why not. Where a model "
        "joins patches to one visual token, a method acts on what is joined: a token of 2×2 patches of a Qwen-VL or an InternVL has the mean of "
        "their keys and attention, and stays or goes as a whole. What Qwen3-VL's decoder adds to its first layers is kept for the "
        "same tokens, or merged by the same weights."
    )
    described = {
        family.name: models.describe(folder)
        for family in FAMILIES
        if (folder := models.packaged(family.alias)) is not None
    }
    reasons: dict[str, int] = {}
    yield from _table(["method", *described])
    for name in reducers.names():
        cells = []
        for model in described.values():
            why = refused(model, name)
            cells.append("✓" if why is None else f"({reasons.setdefault(why, len(reasons) + 1)})")
        yield _row(f"[`{name}`](#{name})", *cells)
    yield ""
    for why, number in reasons.items():
        yield f"({number}) {why}\n"


def refused(model: Architecture, method: str) -> str | None:
    """Why a model cannot have a method, at a quarter of its visual tokens; None where it can."""
    total = model.profile.visual_tokens
    try:
        model.plan(method, None if method == "none" else total // 4, {})
    except ConfigError as error:
        return re.sub(r"^--method \S+ ", "", error.what)
    return None


def _cost_table(costs: Costs) -> Iterator[str]:
    yield "\n## Cost\n"
    yield _prose(
        f"In LLaVA-1.5-7B at K = {KEEP}. *Nodes* and *own GFLOP* are the reducer's in the exported graph; the body of a Scan counts "
        "once as nodes and K times as FLOPs. *Vision* is tower, reducer and projector, and its share of what they cost with all "
        "576 tokens. FLOPs are two for each multiply-add of the graph's matrix products and convolutions: comparisons, sums and "
        f"maxima are not among them. *Prefill* is the decoder's, with {TEXT_TOKENS} other tokens, by the formula "
        "Σ 8nd² + 4n²d + 6mdh over its layers (n tokens in the attention, m in the MLP, width d, MLP width h), against 576."
    )
    yield from _table(["method", "nodes", "own GFLOP", "vision GFLOP", "of all tokens'", "prefill"])
    for name in reducers.names():
        yield _row(f"`{name}`", *costs.get(name, ("–",) * 5))


def _accuracy() -> Iterator[str]:
    yield "\n## Published accuracy\n"
    yield _prose(
        "LLaVA-1.5-7B, per cent of what it reaches with all 576 tokens, in the means of benchmarks that others have published. "
        "Compare within one protocol only, and mind that a paper tends to report more of its own method than others find. "
        "What each method keeps of the demo model's answers is measured in [demo.md](demo.md)."
    )
    yield from _table(["method", *(f"K = {k}" for k in BUDGETS), "protocol"])
    records = {name: reducers.get(name) for name in reducers.names()}
    known = [(name, r.published, r.source) for name, r in records.items() if r.published]
    for name, published, source in sorted(
        known, key=lambda e: (e[1].protocol[:20], -e[1].accuracy.get(KEEP, 0))
    ):
        where = re.search(r"arXiv [\d.]+", published.protocol)
        own = " (its own paper)" if where and where[0] in source else ""
        figures = (f"{published.accuracy[k]:.1f}" if k in published.accuracy else "–" for k in BUDGETS)
        yield _row(f"`{name}`", *figures, _linked(published.protocol) + own)
    missing = [f"`{name}`" for name, record in records.items() if not record.published and name != "none"]
    yield f"\nNo such figures: {', '.join(missing)}."


def _in_tiles() -> Iterator[str]:
    yield "\n## LLaVA-NeXT\n"
    yield _prose(
        "LLaVA-NeXT shows an image in tiles ([tiles.md](tiles.md)). Papers resize every image to 672×672: 2×2 tiles and one of the "
        "whole, 2880 tokens, neither unpadded nor with newline vectors, which is the default here. The flags are those of an export "
        "that does what the method's code does, beside `--keep`. Figures are per cent of what LLaVA-NeXT-7B reaches with all 2880 "
        "tokens, published by others."
    )
    yield from _table(["method", "flags", *(f"K = {k}" for k in TILED), "protocol", "differs"])
    for name in reducers.names():
        record = reducers.get(name)
        if isinstance(record, Reducer) and (said := record.in_tiles):
            figures = (f"{said.accuracy[k]:.1f}" if k in said.accuracy else "–" for k in TILED)
            flags = f"`{said.flags}`" if said.flags else "–"
            yield _row(f"`{name}`", flags, *figures, said.protocol, said.differs or "–")


def _methods() -> Iterator[str]:
    for name, summary in reducers.summaries().items():
        about = describe_method(name)
        yield f"\n## {name}\n"
        yield f"{summary}\n"
        if about["parts"]:
            yield f"- **parts**: {', then '.join(f'[`{part}`](#{part})' for part in about['parts'])}"
        when = "before" if about["before_attention"] else "after"
        where = f", {when} the attention" if "layer" in about["site"] else ""
        yield f"- **site**: {about['site']}{where}"
        for key in ("filter", "correlate", "compress"):
            if about[key] != "–":
                yield f"- **{key}**: {about[key]}"
        yield f"- **cues**: {', '.join(f'`{cue}`' for cue in about['cues']) or 'none but the tokens'}"
        yield f"- **without a CLS token**: {about['without_cls'] or 'refused'}"
        if about["whole_grid"]:
            yield "- **whole grid**: it cannot follow another method"
        if differs := differences(name):
            yield f"- **differs from the reference**: {differs}"
        if about["source"] not in ("–", "baseline"):
            yield f"- **source**: {_linked(about['source'])}"
        if about["options"]:
            yield ""
            yield from _table(["`--set`", "type", "range", "default", "what it is", "default from"])
            for option in about["options"].values():
                cells = (option[key] for key in ("type", "range", "default", "says", "source"))
                yield _row(f"`{option['name']}`", *(cell or "–" for cell in cells))


def differences(name: str) -> str:
    """What a method's file says after "Differs from the reference:"; lines that go on are indented there."""
    path = Path(reducers.__file__).parent / f"{name.replace('-', '_')}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found = re.search(r"^Differs from the reference: (.*(?:\n +.*)*)", docstring, re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _prose(text: str) -> str:
    return textwrap.fill(text, 125, break_long_words=False, break_on_hyphens=False) + "\n"


def _table(head: list[str]) -> list[str]:
    return [_row(*head), _row(*["---"] * len(head))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _linked(text: str) -> str:
    text = re.sub(r"arXiv (\d+\.\d+(?:v\d)?)", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"github\.com/([\w.-]+/[\w.-]+)", r"[\1](https://github.com/\1)", text)


# ---- the costs


def measured_costs(folder: Path) -> Costs:
    """Of every method; the tracing takes some seconds each."""
    model = hollow.llava_7b(folder / "llava")
    clip = hollow.clip_l(folder / "clip", model)
    whole = cost(traced(model, model.plan("none", None, {}), "vision_encoder"))
    costs: Costs = {}
    for name in reducers.names():
        print(f"  {name}", file=sys.stderr, flush=True)
        plan = model.plan(name, None if name == "none" else KEEP, {})
        costs[name] = cells(model.with_clip(clip) if plan.reads("clip_text") else model, plan, whole)
    return costs


def cells(model: SourceModel, plan: ReductionPlan, whole: Cost) -> tuple[str, ...]:
    """A method's row of the table of costs; `whole` is what the vision graph costs with all tokens."""
    nodes, flops, vision = 0, "–", whole
    if plan.handed_over < plan.visual_tokens:
        graph = traced(model, plan, "vision_encoder")
        own, vision = cost(of_reducer(graph)), cost(graph)
        nodes, flops = own.nodes, f"{own.flops / 1e9:.2f}"
    if plan.at(Site.DECODER_LAYER):
        nodes += count(of_reducer(traced(model, plan, "decoder_prefill")))
    prefill = prefill_flops(model, plan) / prefill_flops(model, model.plan("none", None, {}))
    return (
        str(nodes),
        flops,
        f"{vision.flops / 1e9:.1f}",
        f"{vision.flops / whole.flops:.3f}",
        f"{prefill:.3f}",
    )


def traced(model: SourceModel, plan: ReductionPlan, name: str) -> ir.Graph:
    """A graph of a bundle as it is exported, but for its weights."""
    target = targets.get(targets.DEFAULT)
    job = next(job for job in graph_jobs(model, plan, "fp32", target) if job.name == name)
    graph = job.trace()
    weights.bind(graph, model.checkpoint, lambda text: None)
    trace.simplify(graph)
    return graph.graph


def prefill_flops(model: SourceModel, plan: ReductionPlan) -> int:
    """By formula, a key-value head for every query head; what the reducer itself computes is not in it."""
    config, step, total = model.decoder_config, plan.at(Site.DECODER_LAYER), 0
    live = plan.handed_over
    for layer, cached in enumerate(plan.cached(config.layers)):
        live = step.schedule.get(layer, live) if step else live
        width, n, m = config.hidden_size, cached + TEXT_TOKENS, live + TEXT_TOKENS
        total += 8 * n * width**2 + 4 * n**2 * width + 6 * m * width * config.intermediate_size
    return total


if __name__ == "__main__":
    main()
