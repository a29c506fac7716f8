#!/usr/bin/env python3
"""Decode several sequences together against one after the other: tokens a second of both, and whether they are the same.

    python scripts/bench_batch.py                                              # the demo, FP32 and INT4, target ort
    python scripts/bench_batch.py --model CHECKPOINT --targets ort,portable    # of a checkpoint's folder
    python scripts/bench_batch.py --bundle engines/…                           # of a bundle that was exported with --max-batch

Prompts are random tokens, each of another length. The sides take turns, since a machine's speed drifts: what to quote is the ratio
of the medians. A decoder with a static cache runs its whole batch whatever takes part in it, so there the other side is a bundle of
one sequence.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fico_export
from fico_export.runtime.backends.base import Step
from fico_export.runtime.vlm import Vlm


def main() -> int:
    """Print the table; 1 where the tokens differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="alias or checkpoint folder to export")
    parser.add_argument("--bundle", type=Path, help="measure this one instead of exporting")
    parser.add_argument("--targets", default="ort")
    parser.add_argument("--precisions", default="fp32,int4")
    parser.add_argument("--block", type=int, help="of INT4")
    parser.add_argument("--batch", type=int, default=4, help="sequences that run together")
    parser.add_argument(
        "--prompt", type=int, default=40, help="tokens of the first prompt; the nth has n times as many"
    )
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0 for one per physical core")
    parser.add_argument("--json", action="store_true", help="one JSON list on stdout")
    arguments = parser.parse_args()
    if arguments.bundle:
        found = [measure(arguments.bundle.name, load(arguments.bundle, arguments), None, arguments)]
    else:
        found = [
            exported(target, precision, arguments)
            for target in arguments.targets.split(",")
            for precision in arguments.precisions.split(",")
        ]
    print(json.dumps(found, indent=1) if arguments.json else table(found))
    return 0 if all(row["same tokens"] == row["tokens"] for row in found) else 1


def exported(target: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of a bundle that is made for it, and thrown away."""
    with tempfile.TemporaryDirectory(prefix="fico-bench-") as work:

        def make(batch: int) -> Vlm:
            say(f"export {target} {precision}, {batch} together")
            options = {"block": arguments.block} if precision == "int4" else {}
            bundle = fico_export.export(
                arguments.model, method="none", target=target, precision=precision, max_batch=batch,
                out=Path(work) / str(batch), verify=False, **options,
            )  # fmt: skip
            return load(bundle, arguments)

        together = make(arguments.batch)
        one = make(1) if together.manifest.cache_rows is not None else None
        return measure(f"{target} {precision}", together, one, arguments)


def load(bundle: Path, arguments: argparse.Namespace) -> Vlm:
    """A bundle, to run on what was asked for."""
    return fico_export.load(bundle, backend=arguments.backend, threads=arguments.threads)


def measure(name: str, together: Vlm, one: Vlm | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns; `one` is what runs a sequence alone, where it is another bundle."""
    generator, vocabulary = np.random.default_rng(0), together.manifest.decoder.vocab_size
    lengths = [(i + 1) * arguments.prompt for i in range(arguments.batch)]
    prompts = [generator.integers(3, vocabulary, length).tolist() for length in lengths]
    times: list[tuple[float, float]] = []
    for turn in range(arguments.repeats + 1):
        say(f"{name}: turn {turn} of {arguments.repeats}" if turn else f"{name}: warm up")
        apart = [decode(one or together, [prompt], arguments.new_tokens) for prompt in prompts]
        tokens, seconds = decode(together, prompts, arguments.new_tokens)
        if turn:
            times.append((sum(s for _, s in apart), seconds))
    count = arguments.batch * arguments.new_tokens
    same = sum(
        a == b
        for (row,), other in zip((t for t, _ in apart), tokens, strict=True)
        for a, b in zip(row, other, strict=True)
    )
    slow, fast = (statistics.median(side) for side in zip(*times, strict=True))
    return {
        "form": name, "batch": together.decoder.max_batch, "one by one tok/s": count / slow,
        "together tok/s": count / fast, "ratio": slow / fast, "tokens": count, "same tokens": same,
    }  # fmt: skip


def decode(vlm: Vlm, prompts: Sequence[Sequence[int]], count: int) -> tuple[list[list[int]], float]:
    """The likeliest tokens after each prompt, and the seconds that all but the prompts took."""
    caches = [vlm.decoder.new_cache() for _ in prompts]
    steps = [
        Step(cache, vlm.embed(prompt), np.arange(len(prompt))[None])
        for cache, prompt in zip(caches, prompts, strict=True)
    ]
    logits, said = vlm.decoder.step(steps), list[list[int]]([[] for _ in prompts])
    start = time.perf_counter()
    for at in range(count):
        for row, scores in zip(said, logits, strict=True):
            row.append(int(scores.argmax()))
        embeds = vlm.embed([row[-1] for row in said])
        logits = vlm.decoder.step(
            [
                Step(cache, embeds[i : i + 1], np.array([[len(prompts[i]) + at]]))
                for i, cache in enumerate(caches)
            ]
        )
    return said, time.perf_counter() - start


def table(found: Sequence[dict[str, Any]]) -> str:
    """One line a form."""
    lines = [f"{'form':<24}{'batch':>6}{'one by one':>14}{'together':>14}{'ratio':>8}  same tokens"]
    lines += [
        f"{row['form']:<24}{row['batch']:>6}{row['one by one tok/s']:>8.1f} tok/s{row['together tok/s']:>8.1f} tok/s"
        f"{row['ratio']:>8.2f}  {row['same tokens']} of {row['tokens']}"
        for row in found
    ]
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
