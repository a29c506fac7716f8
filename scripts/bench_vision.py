#!/usr/bin/env python3
"""Time the vision graph of LLaVA-1.5 with and without token reduction, on ONNX Runtime's CPU provider.

    python scripts/bench_vision.py                                  # the default method at K=64
    python scripts/bench_vision.py --method NAME --keep 128 --repeats 15 --json

Builds ViT-L/14-336 and its projector (24 layers of 1024, 576 patches, two linear layers to 4096) with random FP32
weights, once with `none` and once with the method, and runs both in alternation: a machine's speed drifts, so the
number to quote is the ratio of the medians. FLOPs are those of the graph's MatMul, Gemm and Conv nodes, inside a Scan too.
Needs 4 GB of memory and 3 GB of disk in the temporary folder for a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

from fico_export import models, reducers
from fico_export.demo.checkpoint import write_random_checkpoint
from fico_export.devices import targets
from fico_export.exporter import checks, trace, weights
from fico_export.exporter.cost import cost, of_reducer
from fico_export.logs.read import read_logs
from fico_export.logs.records import Timed
from fico_export.logs.stages import stage_of
from fico_export.models.source import SourceModel

VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
# Only the width matters: the projector's output has it.
TEXT: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 1}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--method", default=reducers.DEFAULT, help="a reducer's name (default: the package's)"
    )
    parser.add_argument("--keep", type=int, default=64, help="visual tokens kept, K (default 64)")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each graph (default 7)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for one per core (default)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="fico-bench-") as temporary:
        folder = Path(temporary)
        say("write a random checkpoint")
        write_random_checkpoint(folder / "model", vision=VISION, text=TEXT, dtype=torch.float16)
        model = models.load(folder / "model")
        plans = [("none", None), (args.method, args.keep)]
        files = [export_vision(model, method, keep, folder) for method, keep in plans]
        say(f"time {args.repeats} runs of each, then profile")
        medians_ms = time_alternating(files, args.repeats, args.threads, model.profile.size[0])
        reports: list[dict[str, Any]] = [
            {"graph": file.stem, "median_ms": median_ms} | describe(file, args.threads)
            for file, median_ms in zip(files, medians_ms, strict=True)
        ]
    base, reduced = reports
    result = {
        "method": args.method,
        "keep": args.keep,
        "time_ratio": reduced["median_ms"] / base["median_ms"],
        "flops_ratio": reduced["gflops"] / base["gflops"],
        "graphs": reports,
    }
    print(json.dumps(result) if args.json else table(result))


def export_vision(model: SourceModel, method: str, keep: int | None, folder: Path) -> Path:
    """The vision graph alone, made as a bundle's is, checks included."""
    target = targets.get(targets.DEFAULT)
    plan = model.plan(method, keep, {})
    path = folder / f"{method}-k{plan.keep}.onnx"
    say(f"export {path.stem}")
    graph = trace.trace(lambda: model.vision(plan, torch.float32), target.opset)
    graph.ir_version = target.ir_version
    weights.bind(graph, model.checkpoint, say)
    trace.simplify(graph)
    weights.save(graph, path, lambda done_bytes: None)
    checks.check_graph(path, target, static=True)
    return path


def open_session(path: Path, threads: int, profile_to: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Threads of the graph that has just run would spin on while the other is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_to)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def time_alternating(files: list[Path], repeats: int, threads: int, side: int) -> list[float]:
    """Median milliseconds of each graph; one untimed run first, then the graphs in turn."""
    sessions = [open_session(file, threads) for file in files]
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)
    times: list[list[float]] = [[] for _ in files]
    for i in range(1 + repeats):
        for session, measured in zip(sessions, times, strict=True):
            began = time.perf_counter()
            session.run(None, {"pixel_values": pixels})
            if i:
                measured.append((time.perf_counter() - began) * 1000)
    return [statistics.median(measured) for measured in times]


def describe(path: Path, threads: int) -> dict[str, Any]:
    """Node count, FLOPs, and where one run's time goes by ONNX Runtime's profile."""
    graph = ir.load(path).graph
    whole, reducer = cost(graph), cost(of_reducer(graph))
    times = profile(path, threads)
    by_operator: defaultdict[str, float] = defaultdict(float)
    for node in times:
        if stage_of(node.name) == "reducer":
            by_operator[node.operator] += node.mean_ms
    return {
        "nodes": whole.nodes,
        "reducer_nodes": reducer.nodes,
        "gflops": whole.flops / 1e9,
        "reducer_gflops": reducer.flops / 1e9,
        "reducer_share": sum(by_operator.values()) / sum(node.mean_ms for node in times),
        "reducer_ms": dict(sorted(by_operator.items(), key=lambda item: -item[1])[:8]),
    }


def profile(path: Path, threads: int, runs: int = 5) -> tuple[Timed, ...]:
    """Mean milliseconds of each node."""
    session = open_session(path, threads, path.with_suffix(""))
    side = session.get_inputs()[0].shape[-1]
    pixels = np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)
    for _ in range(runs):
        session.run(None, {"pixel_values": pixels})
    return read_logs([Path(session.end_profiling())]).profiles[0].layers


def table(result: dict[str, Any]) -> str:
    header = (
        f"{'graph':<18}{'median':>11}{'GFLOP':>9}{'reducer':>9}{'nodes':>8}{'reducer':>9}{'its time':>10}"
    )
    rows = [
        f"{r['graph']:<18}{r['median_ms']:>8.0f} ms{r['gflops']:>9.1f}{r['reducer_gflops']:>9.2f}"
        f"{r['nodes']:>8}{r['reducer_nodes']:>9}{r['reducer_share']:>10.1%}"
        for r in result["graphs"]
    ]
    ratio = f"ratio: time {result['time_ratio']:.3f}, FLOPs {result['flops_ratio']:.3f}"
    costs = ", ".join(f"{op} {ms:.1f}" for op, ms in result["graphs"][1]["reducer_ms"].items())
    return "\n".join([header, *rows, ratio, f"reducer, ms by operator: {costs or '–'}"])


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
