#!/usr/bin/env python3
"""Time whole answers with and without token reduction: LLaVA-1.5's tower with a 1.1B Llama, random weights.

    python scripts/bench_answer.py                          # ficoco-v at K=64 against all 576 tokens, FP32, CPU
    python scripts/bench_answer.py --method pool --keep 128 --backend ort-cuda --precision fp16 --json

Exports both, then asks both the same question in alternation: a machine's speed drifts, so the number to quote is the
ratio of the medians. Needs 16 GB of memory and 16 GB of disk in the temporary folder, and some minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench_vision import VISION
from PIL import Image
from skimage import data

import fico_export
from fico_export.demo.checkpoint import write_random_checkpoint
from fico_export.runtime.answer import STAGES, Answer

TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "vocab_size": 32064,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="ficoco-v")
    parser.add_argument("--keep", type=int, default=64)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=17)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="fico-bench-") as name:
        folder = Path(name)
        say("write a random checkpoint")
        write_random_checkpoint(folder / "model", vision=VISION, text=TEXT, dtype=torch.float16)
        vlms = {}
        for method, keep in (("none", None), (arguments.method, arguments.keep)):
            say(f"export {method}")
            options: dict[str, Any] = {
                "precision": arguments.precision,
                "verify": False,
                "out": folder / method,
            }
            bundle = fico_export.export(folder / "model", keep, method=method, **options)
            vlms[method] = fico_export.load(bundle, backend=arguments.backend)
        answers: dict[str, list[Answer]] = {method: [] for method in vlms}
        picture = Image.fromarray(data.astronaut())
        for run in range(arguments.repeats + 1):
            say(f"run {run} of {arguments.repeats}" if run else "warm up")
            for method, vlm in vlms.items():
                answer = vlm.generate("What is in it?", [picture], max_new_tokens=arguments.new_tokens)
                answers[method] += [answer] if run else []
        print_table({method: medians(runs) for method, runs in answers.items()}, as_json=arguments.json)


def medians(runs: list[Answer]) -> dict[str, float]:
    """Median milliseconds of each stage, of the first token and per token."""
    found = {stage: statistics.median(run.stages_ms[stage] for run in runs) for stage in STAGES}
    found["first token"] = statistics.median(run.ttft_ms for run in runs)
    found["per token"] = statistics.median(run.tpot_ms or 0.0 for run in runs)
    return found


def print_table(times: dict[str, dict[str, float]], *, as_json: bool) -> None:
    """Both columns and their ratio."""
    if as_json:
        print(json.dumps(times))
        return
    (base, before), (method, after) = times.items()
    print(f"{'ms, median':<12}{base:>12}{method:>12}{'ratio':>8}")
    for stage in before:
        print(
            f"{stage:<12}{before[stage]:>12.1f}{after[stage]:>12.1f}{after[stage] / max(before[stage], 1e-9):>8.2f}"
        )


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
