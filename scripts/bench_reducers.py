#!/usr/bin/env python3
"""Measure every reducer in the vision graph of LLaVA-1.5: latency, its own share, nodes, FLOPs, and what TensorRT-RTX makes of it.

    python scripts/bench_reducers.py --out engines/bench.json              # all of them: an hour on two cores
    python scripts/bench_reducers.py --out engines/bench.json --docs docs/latency.md      # its results into the page
    python scripts/bench_reducers.py --methods NAME,NAME --keeps 64 --repeats 5

Builds ViT-L/14-336 and its projector with random FP32 weights (see `bench_vision.py`), and each method's graph beside that of
`none`. Both run on ONNX Runtime's CPU provider in alternation, together with a graph of the reducer alone, on inputs of the
shapes that it gets: a machine's speed drifts, so the numbers to quote are the ratios. *Own* is the reducer's time over the
tower's, which is that of `none` less the projector's part by FLOPs; what the tower computes for a method besides, such as the
next layer's queries, is in the ratio alone. TensorRT-RTX compiles for SM86, SM89 and SM120 at once.
With --out, results are written after each graph, and a run goes on where it was stopped.
Needs 6 GB of memory and 5 GB of disk in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import hollow
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from bench_vision import TEXT, VISION, open_session, say
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fico_export import models, reducers
from fico_export.demo.checkpoint import write_random_checkpoint
from fico_export.devices import targets
from fico_export.errors import ConfigError
from fico_export.exporter import checks, trace, weights
from fico_export.exporter.cost import cost, of_reducer
from fico_export.models.ports import GraphModule, Ports, fixed
from fico_export.models.source import SourceModel
from fico_export.reducers.base.cues import Cues, Prompt
from fico_export.reducers.base.plan import ReductionPlan, Step

LIMITS = {False: 0.03, True: 0.05}  # of a reducer's own share: greedy ones may take more
START, STOP = "<!-- results -->", "<!-- end of results -->"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--methods", default="", help="names, comma separated (default all)")
    parser.add_argument("--keeps", default="64,128,192", help="budgets, comma separated")
    parser.add_argument("--model", type=Path, help="checkpoint folder (default ViT-L/14-336, random weights)")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each graph (default 7)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for one per core (default)")
    parser.add_argument("--out", type=Path, help="JSON file of results so far")
    parser.add_argument("--docs", type=Path, help="page to write the results into")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()

    known = {name: reducers.get(name) for name in reducers.names() if name != "none"}
    names = args.methods.split(",") if args.methods else list(known)
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out and args.out.exists() else []
    done = {(row["method"], row["keep"]) for row in rows}
    with tempfile.TemporaryDirectory(prefix="fico-bench-") as temporary:
        folder = Path(temporary)
        if args.model is None:
            say("write a random checkpoint")
            write_random_checkpoint(folder / "model", vision=VISION, text=TEXT, dtype=torch.float16)
        model = models.load(args.model or folder / "model")
        bench = Bench(model, folder, args.threads, args.repeats)
        for name in names:
            for keep in map(int, args.keeps.split(",")):
                if (name, keep) not in done and (row := bench.measure(name, keep)):
                    rows.append(row)
                    if args.out:
                        args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    shown = [row for row in rows if row["method"] in names]
    if args.docs:
        page = args.docs.read_text(encoding="utf-8")
        before, after = page.split(START)[0], page.split(STOP)[1]
        args.docs.write_text(f"{before}{START}\n\n{summary(shown)}\n{STOP}{after}", encoding="utf-8")
    if args.json:
        print(json.dumps({"results": shown}))
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(table(shown))


class Bench:
    """One model, and the graph of `none` to compare with."""

    def __init__(self, model: SourceModel, folder: Path, threads: int, repeats: int) -> None:
        self.model, self.folder, self.threads, self.repeats = model, folder, threads, repeats
        self.base_path = self.export(model.plan("none", None, {}))
        graph = ir.load(self.base_path).graph
        self.base = cost(graph)
        projector = cost(node for node in graph if (node.name or "").startswith("multi_modal_projector"))
        self.tower_part = 1 - projector.flops / self.base.flops

    def measure(self, method: str, keep: int) -> dict[str, Any] | None:
        """A row of the table; None for a method that leaves the vision graph as it is, or cannot have this budget."""
        try:
            plan = self.model.plan(method, keep, {})
        except ConfigError as error:
            say(f"{method} at {keep}: {error.what}")
            return None
        if plan.handed_over == plan.visual_tokens:
            say(f"{method} at {keep}: acts in the decoder alone")
            return None
        if plan.reads("clip_text") and not self.model.clip:
            self.model = self.model.with_clip(hollow.clip_l(self.folder / "clip", self.model))
        path = self.export(plan)
        graph = ir.load(path).graph
        whole, alone = cost(graph), self.export_alone(plan, graph)
        paths = {"none": self.base_path, "method": path, "own": alone}
        feeds = {key: feeds_of(p, plan.visual_tokens) for key, p in paths.items()}
        sessions = {key: open_session(p, self.threads) for key, p in paths.items()}
        say(f"{method} at {keep}: time {self.repeats} runs")
        median_ms = median_times(sessions, feeds, self.repeats)
        del sessions
        say(f"{method} at {keep}: compile")
        engine = compiled(path)
        for file in self.folder.glob(f"{path.stem}*"):
            file.unlink()
        return {
            "method": method,
            "keep": keep,
            "median_ms": median_ms,
            "ratio": median_ms["method"] / median_ms["none"],
            "own_share": median_ms["own"] / (median_ms["none"] * self.tower_part),
            "greedy": any(node.op_type == "Scan" for node in graph),
            "nodes": whole.nodes,
            "nodes_added": whole.nodes - self.base.nodes,
            "own_nodes": cost(of_reducer(graph)).nodes,
            "gflops": whole.flops / 1e9,
            "flops_ratio": whole.flops / self.base.flops,
        } | engine

    def export(self, plan: ReductionPlan) -> Path:
        """The vision graph alone, made as a bundle's is, checks included."""
        target = targets.get(targets.DEFAULT)
        path = self.folder / f"{plan.method}-k{plan.keep}.onnx"
        say(f"{plan.method} at {plan.keep}: export")
        graph = trace.trace(lambda: self.model.vision(plan, torch.float32), target.opset)
        graph.ir_version = target.ir_version
        weights.bind(graph, self.model.checkpoint, say)
        trace.simplify(graph)
        weights.save(graph, path, lambda done_bytes: None)
        checks.check_graph(path, target, static=True)
        return path

    def export_alone(self, plan: ReductionPlan, graph: ir.Graph) -> Path:
        """A graph of what the reducers do in a vision graph, and nothing else; what they read are its inputs."""
        target = targets.get(targets.DEFAULT)
        calls = calls_in(self.model, plan, graph)
        made = trace.trace(lambda: Alone(calls), target.opset)
        made.ir_version = target.ir_version
        trace.simplify(made)
        path = self.folder / f"{plan.method}-k{plan.keep}-alone.onnx"
        ir.save(made, path)
        return path


Call = tuple[
    Step, int, Tensor, Cues
]  # a reducer at one layer or site, how many tokens it leaves, what it is given


class Alone(GraphModule):
    """Applications of reducers, each on tensors of its own."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self.calls = calls

    def ports(self) -> Ports:
        """A list of all tensors that they are given; tokens and indices of each."""
        given = {f"input_{i}": tensor for i, tensor in enumerate(leaves(self.calls))}
        made = fixed(given, [f"output_{i}" for i in range(2 * len(self.calls))])
        return replace(made, inputs=(made.flat,))

    def forward(self, tensors: list[Tensor]) -> list[Tensor]:
        """The leaves of the calls → tokens and indices of each."""
        given = iter(tensors)
        results = []
        for step, keep, tokens, cues in self.calls:
            arguments = filled(tokens, given), filled(cues, given), keep, step.options
            reduced = step.reducer.apply(*arguments)
            results += [reduced.tokens, reduced.indices]
        return results


def calls_in(model: SourceModel, plan: ReductionPlan, graph: ir.Graph) -> list[Call]:
    """How a plan's reducers are called in a vision graph, with tensors that have shapes and no values."""
    calls: list[Call] = []
    with torch.device("meta"), torch.no_grad():
        module = model.vision(plan, torch.float32)
        for reduce in module.reduce.values():
            reduce.register_forward_pre_hook(
                lambda reduce, given: calls.append((reduce.step, reduce.keep, *given[:2]))
            )
        module(*(torch.from_numpy(example(i, plan.visual_tokens)).to("meta") for i in graph.inputs))
    return calls


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors in calls and cues."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, Cues | Prompt):
        for field in fields(value):
            yield from leaves(getattr(value, field.name))


def filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with other tensors, in the order of `leaves`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Cues | Prompt):
        return replace(value, **{f.name: filled(getattr(value, f.name), tensors) for f in fields(value)})
    return value


def feeds_of(path: Path, visual_tokens: int) -> dict[str, np.ndarray]:
    """Some content for every input of a graph."""
    return {str(i.name): example(i, visual_tokens) for i in ir.load(path).graph.inputs}


def example(value: ir.Value, visual_tokens: int) -> np.ndarray:
    """Some content for an input: numbers about 0, ones for sizes and masks, ascending positions."""
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(int(d) for d in value.shape)
    if value.dtype == ir.DataType.INT64:
        return np.broadcast_to(np.arange(shape[-1]) * visual_tokens // shape[-1], shape).copy()
    if value.dtype != ir.DataType.FLOAT or len(shape) < 3:
        return np.ones(shape, value.dtype.numpy())
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def median_times(
    sessions: dict[str, ort.InferenceSession], feeds: dict[str, dict[str, np.ndarray]], repeats: int
) -> dict[str, float]:
    """Median milliseconds of each graph; one untimed run first, then the graphs in turn."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for i in range(1 + repeats):
        for name, session in sessions.items():
            began = time.perf_counter()
            session.run(None, feeds[name])
            if i:
                times[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(taken) for name, taken in times.items()}


def compiled(path: Path) -> dict[str, float | None]:
    """Seconds that TensorRT-RTX takes for a graph, and the engine's size; None where it is not installed or refuses."""
    unknown = {"compile_s": None, "engine_mib": None}
    try:
        import rtx
    except ImportError as error:
        say(f"no engine: {error}")
        return unknown
    began = time.perf_counter()
    try:
        engine = rtx.compile_engine(path)
    except rtx.CompileError as error:
        say(f"no engine: {error}")
        return unknown
    return {"compile_s": time.perf_counter() - began, "engine_mib": engine.nbytes / 2**20}


def table(rows: list[dict[str, Any]]) -> Table:
    """A row each; what is over its limit is red."""
    shown = Table()
    heads = (
        "method",
        "K",
        "vision, ms",
        "of none",
        "own",
        "nodes",
        "added",
        "GFLOP",
        "of none",
        "compile, s",
        "MiB",
    )
    for i, head in enumerate(heads):
        shown.add_column(head, justify="left" if i == 0 else "right")
    for row in rows:
        over = row["own_share"] > LIMITS[row["greedy"]]
        own = f"{row['own_share']:.1%}"
        shown.add_row(
            row["method"],
            str(row["keep"]),
            f"{row['median_ms']['method']:.0f}",
            f"{row['ratio']:.3f}",
            f"[red]{own}[/red]" if over else own,
            str(row["nodes"]),
            str(row["nodes_added"]),
            f"{row['gflops']:.1f}",
            f"{row['flops_ratio']:.3f}",
            *("–" if row[key] is None else f"{row[key]:.1f}" for key in ("compile_s", "engine_mib")),
        )
    return shown


def summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown row for each method: ratio and own share at every budget, the rest at the smallest."""
    keeps = sorted({row["keep"] for row in rows})
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["keep"]] = row
    heads = [
        "method",
        *(f"K = {keep}" for keep in keeps),
        "by FLOPs",
        *(f"own, {keep}" for keep in keeps),
        "nodes added",
        "compile, s",
        "engine, MiB",
    ]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for method, at in sorted(by_method.items()):
        least = at[min(at)]
        engine = (least["compile_s"], least["engine_mib"])
        lines.append(
            [
                f"`{method}`" + (" (greedy)" if least["greedy"] else ""),
                *(f"{at[keep]['ratio']:.2f}" if keep in at else "–" for keep in keeps),
                f"{least['flops_ratio']:.2f}",
                *(f"{at[keep]['own_share']:.1%}" if keep in at else "–" for keep in keeps),
                str(least["nodes_added"]),
                *(
                    "–" if value is None else f"{value:.{digits}f}"
                    for value, digits in zip(engine, (1, 0), strict=True)
                ),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
