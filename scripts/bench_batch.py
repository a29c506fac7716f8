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
from fico_export.runtime.backends.base import Array, Step
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
        tokens, seconds, scores = decode(together, prompts, arguments.new_tokens)
        if turn:
            times.append((sum(s for _, s, _ in apart), seconds))
    count = arguments.batch * arguments.new_tokens
    alone = [(row, found) for (row,), _, (found,) in apart]
    same = sum(
        a == b for (row, _), other in zip(alone, tokens, strict=True) for a, b in zip(row, other, strict=True)
    )
    parted = [
        parting(row, found, other, others)
        for (row, found), other, others in zip(alone, tokens, scores, strict=True)
        if row != other
    ]
    slow, fast = (statistics.median(side) for side in zip(*times, strict=True))
    return {
        "form": name, "batch": together.decoder.max_batch, "one by one tok/s": count / slow,
        "together tok/s": count / fast, "ratio": slow / fast, "tokens": count, "same tokens": same, "parted": parted,
    }  # fmt: skip


def parting(row: list[int], alone: list[Array], other: list[int], together: list[Array]) -> dict[str, float]:
    """Where two answers part: how far the two likeliest logits were from each other, and how far each from itself, at most.

    A gap below twice the difference is a tie that rounding decides.
    """
    at = next(i for i, (a, b) in enumerate(zip(row, other, strict=True)) if a != b)
    second, first = np.sort(alone[at])[-2:]
    difference = np.abs(alone[at] - together[at]).max()
    return {
        "token": at,
        "gap": float(first - second),
        "difference": float(difference),
        "largest": float(np.abs(alone[at]).max()),
    }


def decode(
    vlm: Vlm, prompts: Sequence[Sequence[int]], count: int
) -> tuple[list[list[int]], float, list[list[Array]]]:
    """The likeliest tokens after each prompt, the seconds that all but the prompts took, and the logits of each token."""
    caches = [vlm.decoder.new_cache() for _ in prompts]
    steps = [
        Step(cache, vlm.embed(prompt), np.arange(len(prompt))[None])
        for cache, prompt in zip(caches, prompts, strict=True)
    ]
    logits, said = vlm.decoder.step(steps), list[list[int]]([[] for _ in prompts])
    seen = list[list[Array]]([[] for _ in prompts])
    start = time.perf_counter()
    for at in range(count):
        for row, found, scores in zip(said, seen, logits, strict=True):
            row.append(int(scores.argmax()))
            found.append(scores.copy())
        embeds = vlm.embed([row[-1] for row in said])
        logits = vlm.decoder.step(
            [
                Step(cache, embeds[i : i + 1], np.array([[len(prompts[i]) + at]]))
                for i, cache in enumerate(caches)
            ]
        )
    return said, time.perf_counter() - start, seen


def table(found: Sequence[dict[str, Any]]) -> str:
    """One line a form."""
    lines = [f"{'form':<24}{'batch':>6}{'one by one':>14}{'together':>14}{'ratio':>8}  same tokens"]
    lines += [
        f"{row['form']:<24}{row['batch']:>6}{row['one by one tok/s']:>8.1f} tok/s{row['together tok/s']:>8.1f} tok/s"
        f"{row['ratio']:>8.2f}  {row['same tokens']} of {row['tokens']}"
        for row in found
    ]
    lines += [
        f"{row['form']}: answers part at token {part['token']}, where the two likeliest logits are {part['gap']:.2g} apart and rounding "
        f"moves one by up to {part['difference']:.2g} (the largest is {part['largest']:.2g})"
        for row in found
        for part in row["parted"]
    ]
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
