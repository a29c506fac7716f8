#!/usr/bin/env python3
"""LLaVA-NeXT at real size, random weights: what five grids cost beside one, and what fewer visual tokens save.

    python scripts/bench_next.py profiles            # export one grid and all five, FP16: seconds and bytes
    python scripts/bench_next.py tokens              # INT4: vision and prefill at 2880, 640, 320 and 160 visual tokens
    python scripts/bench_next.py engines             # the vision graph of each number of tiles as a TensorRT-RTX engine, without a GPU

All sides of a part run in one process, in turns, since a machine's speed drifts: what to quote is the ratio of the medians. `tokens`
times the vision graph of a method, and the prefill of as many tokens with some text; the graph of all tokens runs tile by tile and
with all tiles at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from bench_build import compiled
from bench_vision import open_session
from random_models import write_checkpoint

import fico_export
from fico_export import models
from fico_export.bundle.manifest import Manifest
from fico_export.devices import targets
from fico_export.exporter import trace, weights
from fico_export.models.source import SourceModel
from fico_export.options import ExportOptions
from fico_export.runtime.backends.base import Step
from fico_export.runtime.vlm import Vlm

ALL, BUDGETS, TEXT = 2880, (640, 320, 160), 40


def main() -> int:
    """Print what a part found; 1 where its limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument(
        "--size", choices=("tiny", "1b", "mistral-7b"), default="mistral-7b", help="of the random decoder"
    )
    parser.add_argument("--method", default="cls-topk")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0 for one per physical core")
    parser.add_argument("--work", type=Path, help="keep the checkpoint here, to use it again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fico-bench-") as temporary:
        work = arguments.work or Path(temporary)
        checkpoint = work / f"next-{arguments.size}"
        if not (checkpoint / "preprocessor_config.json").exists():
            say(f"write {checkpoint.name}")
            write_checkpoint(checkpoint, arguments.size, "LlavaNext")
        found, right = PARTS[arguments.part](checkpoint, Path(temporary), arguments)
    print(json.dumps(found, indent=1))
    return 0 if right else 1


def profiles(checkpoint: Path, work: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """One grid and all five, in turns: seconds, and bytes that are not linked to the checkpoint's files."""
    seconds: dict[str, list[float]] = {"2x2": [], "all": []}
    written: dict[str, int] = {}
    for turn in range(arguments.repeats):
        for name, times in seconds.items():
            out = work / f"{name}-{turn}"
            say(f"export {name}")
            began = time.perf_counter()
            fico_export.export(
                checkpoint,
                320,
                method=arguments.method,
                profile=name,
                precision="fp16",
                out=out,
                verify=False,
            )
            times.append(time.perf_counter() - began)
            written[name] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {"seconds": medians["all"] / medians["2x2"], "bytes": written["all"] / written["2x2"]}
    return {"seconds": medians, "bytes": written, "all / one": ratios}, max(ratios.values()) <= 1.3


def tokens(checkpoint: Path, work: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Milliseconds of the vision graph and of the prefill by visual tokens, and of both against all tokens."""
    say("export the decoder, INT4")
    bundle = fico_export.export(
        checkpoint,
        320,
        method=arguments.method,
        precision="int4",
        target="ort",
        out=work / "int4",
        verify=False,
    )
    sessions = visions(models.load(checkpoint), work, arguments)
    pixels = np.random.default_rng(0).standard_normal((5, 3, 336, 336), np.float32)
    if arguments.size == "tiny":
        pixels = pixels[..., :112, :112]
    found: dict[str, Any] = {}
    with fico_export.load(bundle, threads=arguments.threads) as vlm:
        runs: dict[str, Callable[[], Any]] = {
            f"vision {name}": lambda session=session, tiles=tiles: [
                session.run(None, {"pixel_values": part}) for part in np.split(pixels, 5 // tiles)
            ]
            for name, (session, tiles) in sessions.items()
        }
        runs |= {f"prefill {count}": lambda count=count: prefill(vlm, count) for count in (ALL, *BUDGETS)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(arguments.repeats):
            for name, run in runs.items():
                say(f"turn {turn + 1}: {name}")
                began = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - began) * 1000)
    found["ms"] = {name: round(statistics.median(each), 1) for name, each in times.items()}
    ms = found["ms"]
    whole = ms[f"vision {ALL}"] + ms[f"prefill {ALL}"]
    found["first token, of all tokens"] = {
        count: round((ms[f"vision {count}"] + ms[f"prefill {count}"]) / whole, 3) for count in BUDGETS
    }
    found["prefill, of all tokens"] = {
        count: round(ms[f"prefill {count}"] / ms[f"prefill {ALL}"], 3) for count in BUDGETS
    }
    found["vision tile by tile, of all at once"] = round(ms["vision tile by tile"] / ms[f"vision {ALL}"], 3)
    return found, found["first token, of all tokens"][320] <= 0.2


def visions(
    model: SourceModel, work: Path, arguments: argparse.Namespace
) -> dict[str, tuple[ort.InferenceSession, int]]:
    """Sessions of the vision graph in FP32, each with the tiles that it takes at once."""
    by_tile = model.shaped(ExportOptions(method="none", profile=("2x2",)))
    at_once = model.shaped(ExportOptions(method=arguments.method, keep=320))
    found = {"tile by tile": (session_of(by_tile, "none", None, work / "by_tile.onnx", arguments), 1)}
    for keep in (ALL, *BUDGETS):
        method = "none" if keep == ALL else arguments.method
        asked = None if keep == ALL else keep
        found[str(keep)] = (session_of(at_once, method, asked, work / f"{keep}.onnx", arguments), 5)
    return found


def session_of(
    model: SourceModel, method: str, keep: int | None, path: Path, arguments: argparse.Namespace
) -> ort.InferenceSession:
    """The vision graph alone in FP32, its weights in a file beside it."""
    say(f"export {path.stem}")
    plan, target = (
        model.plan(method, keep if model.profile.visual_tokens == ALL else keep and keep // 9, {}),
        targets.get("portable"),
    )
    graph = trace.trace(lambda: model.vision(plan, torch.float32), target.opset)
    graph.ir_version = target.ir_version
    weights.bind(graph, model.checkpoint, lambda text: None)
    trace.simplify(graph)
    weights.save(graph, path, lambda count: None)
    return open_session(path, arguments.threads)


def prefill(vlm: Vlm, count: int) -> None:
    """A prompt of so many visual tokens and some text, into an empty cache."""
    rows = count + TEXT
    embeds = np.random.default_rng(0).standard_normal((rows, vlm.manifest.decoder.hidden_size), np.float32)
    cache = vlm.decoder.new_cache()
    vlm.decoder.step([Step(cache, embeds.astype(vlm.embed([1]).dtype), np.arange(rows)[None])])


def engines(checkpoint: Path, work: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Seconds, memory and bytes of each vision graph as an engine; the decoder is that of any bundle."""
    bundle = fico_export.export(
        checkpoint,
        320,
        method=arguments.method,
        profile="all",
        precision="fp16",
        target="rtx",
        out=work / "rtx",
        verify=False,
    )
    names = {profile.graph: f"{profile.tiles} tiles" for profile in Manifest.load(bundle).profiles}
    asked = argparse.Namespace(profiles=1, low_memory=False, capability=["8.6"])
    rows = [row for name in names for row in compiled(bundle, "rtx", name, asked)]
    return {names[row["graph"]]: row for row in rows}, len(rows) == len(names)


PARTS = {"profiles": profiles, "tokens": tokens, "engines": engines}


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
