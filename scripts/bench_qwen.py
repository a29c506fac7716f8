#!/usr/bin/env python3
"""Qwen-VL at real size, random weights: what fewer visual tokens save, and its graphs as engines without a GPU.

    python scripts/bench_qwen.py tokens              # INT4 at 672×672: vision, prefill and both, all tokens and a quarter of them
    python scripts/bench_qwen.py engines             # vision and decoder, FP16 and INT4, for SM86, SM89 and SM120, by TensorRT-RTX
    python scripts/bench_scale.py --size qwen3-vl-2b --method divprune --keep 49       # export, memory, speed beside llama.cpp

The sides of `tokens` run in one process, in turns, since a machine's speed drifts: what to quote is the ratio of the medians.
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
from bench_build import compiled
from PIL import Image
from random_qwen import write_checkpoint

import fico_export
from fico_export.bundle import graph_names
from fico_export.runtime.backends.base import Step
from fico_export.runtime.vlm import Vlm

SIDE, TEXT = "672x672", 40
CAPABILITIES = ("8.6", "8.9", "12.0")


def main() -> int:
    """Print what a part found; 1 where its limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--model", default="qwen3-vl-2b", help="alias whose shapes the random weights have")
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--resolution", default=SIDE, help="HxW")
    parser.add_argument("--precision", action="append", help="of engines; repeatable; default fp16 and int4")
    parser.add_argument(
        "--capability", action="append", help="of engines; repeatable; default 8.6, 8.9 and 12.0"
    )
    parser.add_argument("--graph", action="append", help="of engines; repeatable; default all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 for one per physical core")
    parser.add_argument("--work", type=Path, help="keep the checkpoint here, to use it again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fico-bench-") as temporary:
        checkpoint = (arguments.work or Path(temporary)) / arguments.model
        if not (checkpoint / "tokenizer.json").exists():
            say(f"write {checkpoint.name}")
            write_checkpoint(checkpoint, arguments.model)
        found, right = PARTS[arguments.part](checkpoint, Path(temporary), arguments)
    print(json.dumps(found, indent=1))
    return 0 if right else 1


def tokens(checkpoint: Path, work: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Milliseconds of the vision graph and of the prefill, with all tokens and with a quarter, and the ratios."""
    picture = Image.radial_gradient("L").resize((400, 400)).convert("RGB")
    bundles: dict[str, Vlm] = {}
    total = whole(checkpoint, arguments)
    for name, keep in (("all", None), ("quarter", total // 4)):
        say(f"export {name}")
        out = fico_export.export(
            checkpoint, keep, method=arguments.method if keep else "none", precision="int4", target="ort",
            resolution=(arguments.resolution,), out=work / name, verify=False,
        )  # fmt: skip
        bundles[name] = fico_export.load(out, threads=arguments.threads)
    runs: dict[str, Callable[[], Any]] = {}
    for name, vlm in bundles.items():
        pixels = vlm.preprocess(picture)
        runs[f"vision {name}"] = lambda vlm=vlm, pixels=pixels: vlm.encode_pixels(pixels)
        runs[f"prefill {name}"] = lambda vlm=vlm, name=name: prefill(
            vlm, total if name == "all" else total // 4
        )
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(arguments.repeats + 1):  # the first is not counted
        for name, run in runs.items():
            say(f"turn {turn}: {name}")
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) * 1000)
    ms = {name: statistics.median(each[1:]) for name, each in times.items()}
    first = {name: ms[f"vision {name}"] + ms[f"prefill {name}"] for name in bundles}
    ratios = {
        "first token": first["quarter"] / first["all"],
        "prefill": ms["prefill quarter"] / ms["prefill all"],
        "vision": ms["vision quarter"] / ms["vision all"],
    }
    counts = {"all": total, "quarter": total // 4}
    return {"tokens": counts, "ms": ms, "first token ms": first, "quarter / all": ratios}, True


def whole(checkpoint: Path, arguments: argparse.Namespace) -> int:
    """Visual tokens of an image before a reduction."""
    from fico_export import models
    from fico_export.options import ExportOptions

    shaped = models.describe(checkpoint).shaped(
        ExportOptions(method="none", resolution=(arguments.resolution,))
    )
    return shaped.profile.visual_tokens


def prefill(vlm: Vlm, count: int) -> None:
    """A prompt of so many visual tokens and some text, into an empty cache."""
    rows, decoder = count + TEXT, vlm.manifest.decoder
    random = np.random.default_rng(0)
    dtype = vlm.embed([1]).dtype
    embeds = random.standard_normal((rows, decoder.hidden_size), np.float32).astype(dtype)
    planes = None
    if vlm.manifest.planes:
        planes = np.zeros((vlm.manifest.planes, rows, decoder.hidden_size), dtype)
        planes[:, :count] = 0.1
    positions = np.tile(np.arange(rows), (vlm.layout.axes, 1))
    vlm.decoder.step([Step(vlm.decoder.new_cache(), embeds, positions, planes)])


def engines(checkpoint: Path, work: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Seconds, memory and bytes of the vision graph and of the decoder as engines for several GPUs."""
    names = arguments.graph or [graph_names.VISION, graph_names.DECODER]
    asked = argparse.Namespace(
        profiles=1, low_memory=False, capability=list(arguments.capability or CAPABILITIES)
    )
    found: dict[str, Any] = {}
    for precision in arguments.precision or ["fp16", "int4"]:
        keep = whole(checkpoint, arguments) // 4
        say(f"export {precision}")
        bundle = fico_export.export(
            checkpoint, keep, method=arguments.method, precision=precision, target="rtx",
            resolution=(arguments.resolution,), out=work / precision, verify=False,
        )  # fmt: skip
        for name in names:
            found |= {f"{precision} {name}": row for row in compiled(bundle, "rtx", name, asked)}
    return found, len(found) == len(names) * len(arguments.precision or ["fp16", "int4"])


PARTS = {"tokens": tokens, "engines": engines}


def say(text: str) -> None:
    """A line of progress."""
    print(f"  {text}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
