#!/usr/bin/env python3
"""What it takes to compile a bundle at real size in TensorRT-RTX: seconds to parse and build, most host memory, size of the plan.

    python scripts/bench_build.py --size 7b

Writes a LLaVA-1.5 checkpoint of random weights, exports it at K = 64 for `trt-10.3` (the legacy decoder) and for `rtx` (the
modern one), the decoder in INT4 and the tower in FP16, and compiles each graph in a process of its own, for one generation of
GPUs, with none in the machine. A graph that no engine can be made of is named on stderr. The bundle and the checkpoint are
deleted at the end; the limits are those of the project for the vision graph.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fico_export
from fico_export.build import jobs, preflight, process
from fico_export.build.compile import Task
from fico_export.bundle.engines import Options
from fico_export.bundle.manifest import Manifest
from fico_export.devices.nvidia import RTX
from fico_export.errors import FicoError

TARGETS = ("trt-10.3", "rtx")
LIMITS = {"seconds": 30.0, "peak_bytes": 6e9}  # of the vision graph


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--size", default="7b", help="tiny, 1b, 7b or 13b (default 7b)")
    parser.add_argument("--checkpoint", type=Path, help="one that is there, instead of random weights")
    parser.add_argument("--work", type=Path, help="folder with room for both (default: a temporary one)")
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated")
    parser.add_argument("--graphs", default="vision_encoder,decoder_model_merged", help="comma-separated")
    parser.add_argument("--precision", default="int4", help="fp16 or int4 (default)")
    parser.add_argument("--keep", type=int, default=64, help="visual tokens that are left (default 64)")
    parser.add_argument("--capability", action="append", help="such as 8.6 (default); repeatable")
    parser.add_argument("--profiles", type=int, default=1, help="1 (default) or 2")
    parser.add_argument("--low-memory", action="store_true", help="as `fico build --low-memory`")
    parser.add_argument("--json", action="store_true", help="rows instead of a table")
    args = parser.parse_args()

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        checkpoint = args.checkpoint or written(Path(folder) / "checkpoint", args.size)
        for target in args.targets.split(","):
            bundle = Path(folder) / target
            say(f"export for {target}")
            fico_export.export(
                checkpoint, args.keep, precision=args.precision, target=target, out=bundle, verify=False
            )
            for name in args.graphs.split(","):
                rows += compiled(bundle, target, name, args)
            shutil.rmtree(bundle)
    print(json.dumps({"size": args.size, "rows": rows}) if args.json else table(rows), end="")
    if over := [row["graph"] for row in rows if beyond(row)]:
        raise SystemExit(f"over the limits: {', '.join(over)}")


def written(folder: Path, size: str) -> Path:
    from random_models import write_checkpoint

    say(f"write a checkpoint of {size}")
    write_checkpoint(folder, size)
    return folder


def compiled(bundle: Path, target: str, name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The numbers of one graph; none where it makes no engine."""
    try:
        (job,) = jobs.plan(bundle, Manifest.load(bundle), [name], profiles=args.profiles)
        return [measured(bundle, target, job, args)]
    except FicoError as error:
        say(f"{name} for {target}: {error.what}")
        return []


def measured(bundle: Path, target: str, job: jobs.Job, args: argparse.Namespace) -> dict[str, Any]:
    name = job.name
    say(
        f"compile {name} for {target}: about {preflight.memory_bytes([job], RTX.runtime) / 1e9:.1f} GB of memory"
    )
    options = Options(auxiliary_streams=0, low_memory=True) if args.low_memory else Options()
    task = Task(
        runtime=RTX.runtime,
        graph=bundle / job.graph.file,
        profiles=job.profiles,
        options=options,
        compute_capabilities=tuple(args.capability or ["8.6"]),
    )
    engine = bundle / f"{name}.engine"
    made = process.make(task, engine, None, lambda done: None)
    return {
        "target": target,
        "graph": name,
        "weight_bytes": job.graph.weight_bytes,
        "plan_bytes": engine.stat().st_size,
        **made.model_dump(),
    }


def beyond(row: dict[str, Any]) -> bool:
    """Whether a vision graph took more than it may."""
    seconds = row["parse_seconds"] + row["build_seconds"]
    slow, large = seconds > LIMITS["seconds"], row["peak_bytes"] > LIMITS["peak_bytes"]
    return row["graph"] == "vision_encoder" and (slow or large)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown row for each graph."""
    lines = [
        "| target | graph | weights, GB | parse, s | build, s | peak memory, GB | plan, GB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        weights, peak, plan = (row[key] / 1e9 for key in ("weight_bytes", "peak_bytes", "plan_bytes"))
        lines.append(
            f"| `{row['target']}` | `{row['graph']}` | {weights:.2f} | {row['parse_seconds']:.1f} | "
            f"{row['build_seconds']:.1f} | {peak:.2f} | {plan:.2f} |"
        )
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
