#!/usr/bin/env python3
"""SmolVLM or InternVL at real size, random weights: one tile, all tiles, and a budget over all tiles, side by side.

    python scripts/bench_tiled.py answers                    # INT4 for ONNX Runtime: bundle, memory, first token, tokens a second
    python scripts/bench_tiled.py engines --model internvl3-1b    # vision and decoder for SM86, SM89 and SM120, by TensorRT-RTX

Every answer is a process of its own, whose memory is measured. The sides take turns, since a machine's speed drifts: what to quote is the
ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_build import compiled
from bench_scale import medians, run
from PIL import Image
from random_tiled import write_checkpoint

import fico_export
from fico_export.bundle import graph_names

GRID, PHOTOGRAPH = "3x4", (640, 480)
CAPABILITIES = ("8.6", "8.9", "12.0")
QUESTION = "What is in this picture?"


def main() -> int:
    """Print what a part found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["answers", "engines", "answer"])
    parser.add_argument("--model", default="smolvlm2-256m", help="alias whose shapes the random weights have")
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--keep", type=int, default=64)
    parser.add_argument("--profile", default="1", help="of engines")
    parser.add_argument("--quantize-vision", choices=["int8"], help="of answers; FP16 by default")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 for one per physical core")
    parser.add_argument("--work", type=Path, help="keep the checkpoint here, to use it again")
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "answer":
        print(json.dumps(answer(arguments)))
        return 0
    with tempfile.TemporaryDirectory(prefix="fico-bench-") as temporary:
        checkpoint = (arguments.work or Path(temporary)) / arguments.model
        if not (checkpoint / "tokenizer.json").exists():
            say(f"write {checkpoint.name}")
            write_checkpoint(checkpoint, arguments.model)
        part = answers if arguments.part == "answers" else engines
        print(json.dumps(part(checkpoint, Path(temporary), arguments), indent=1))
    return 0


def answers(checkpoint: Path, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of each side, medians over the turns; and what the budget over all tiles takes of what they take whole."""
    sides: dict[str, dict[str, Any]] = {
        "one tile": {"keep": None, "method": "none", "profile": ("1",)},
        "all tiles": {"keep": None, "method": "none", "profile": (GRID,)},
        "budget": {
            "keep": arguments.keep, "method": arguments.method, "profile": (GRID,), "tiling": "joint",
        },
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, request in sides.items():
        say(f"export {name}")
        bundle = fico_export.export(
            checkpoint, request.pop("keep"), precision="int4", block=32, quantize_head="int8", target="ort",
            quantize_vision=arguments.quantize_vision,
            out=work / name.replace(" ", "-"), verify=False, **request,
        )  # fmt: skip
        stored = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
        found[name] = {"bundle MB": stored / 1e6}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(arguments.repeats):
        for name in sides:
            say(f"turn {turn + 1}: {name}")
            command = [sys.executable, __file__, "answer", "--bundle", str(work / name.replace(" ", "-"))]
            command += ["--threads", str(arguments.threads), "--new-tokens", str(arguments.new_tokens)]
            output, peak = run(command)
            turns[name].append({**json.loads(output), "memory MB": peak / 1e6})
    for name, each in turns.items():
        found[name] |= medians(each)
    whole, budget = found["all tiles"], found["budget"]
    found["budget / all tiles"] = {
        key: budget[key] / value for key, value in whole.items() if key != "prompt tokens"
    }
    return found


def answer(arguments: argparse.Namespace) -> dict[str, float]:
    """Load a bundle and ask it about a photograph, twice: the second time counts."""
    picture = Image.radial_gradient("L").resize(PHOTOGRAPH).convert("RGB")
    with fico_export.load(arguments.bundle, backend="ort-cpu", threads=arguments.threads) as vlm:
        vlm.generate(QUESTION, [picture], max_new_tokens=2)
        said = vlm.generate(QUESTION, [picture], max_new_tokens=arguments.new_tokens)
    return {
        "prompt tokens": said.prompt_tokens,
        "first token ms": said.ttft_ms,
        "tokens a second": 1000 / said.tpot_ms if said.tpot_ms else 0.0,
    }


def engines(checkpoint: Path, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, memory and bytes of the vision graph and of the decoder as engines for several GPUs."""
    asked = argparse.Namespace(profiles=1, low_memory=False, capability=list(CAPABILITIES))
    found: dict[str, Any] = {}
    for precision in ("fp16", "int4"):
        say(f"export {precision}")
        bundle = fico_export.export(
            checkpoint, arguments.keep, method=arguments.method, precision=precision, target="rtx",
            block=32 if precision == "int4" else None, profile=(arguments.profile,),
            tiling="joint" if arguments.profile != "1" else None, out=work / precision, verify=False,
        )  # fmt: skip
        for name in (graph_names.VISION, graph_names.DECODER):
            found |= {f"{precision} {name}": row for row in compiled(bundle, "rtx", name, asked)}
    return found


def say(text: str) -> None:
    """A line of progress."""
    print(f"  {text}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
