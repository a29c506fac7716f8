#!/usr/bin/env python3
"""Hold `fico profile` to its promises: stages sum to the whole, a bundle equals itself, measuring costs nothing.

    python scripts/bench_profile.py engines/demo-ficoco-v-k64-fp32           # prints each number and its limit
    python scripts/bench_profile.py BUNDLE --new-tokens 64 --rounds 40 --json

The bundle is loaded three times, twice as `fico profile` does, in processes of their own, and once in this one with the clocks
of its stages taken out. All three answer in alternation. What measuring costs is the ratio of the times per token by the wall
clock: a long answer less one of a single token, over the tokens between. The intervals are of the median, by bootstrap.
On a machine that others use, wall times say little: the ratios of CPU time, with --threads 1 so that none is spent waiting,
say whether the work is the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fico_export
from fico_export.profile.measure import PAUSE_SECONDS
from fico_export.profile.picture import PROMPT, drawn
from fico_export.profile.subject import Subject
from fico_export.profile.worker import Job
from fico_export.runtime import generation
from fico_export.runtime.sampling import Sampling
from fico_export.runtime.vlm import Vlm


class NoClock:
    """In place of the clock of the stages."""

    def lap_ms(self) -> float:
        return 0.0


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=40, help="answers of each that count (default 40)")
    parser.add_argument("--new-tokens", type=int, default=64, help="of the long answers (default 64)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for one per core (default)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()

    generation._Clock = NoClock  # type: ignore[assignment, misc]
    bare = fico_export.load(args.bundle, backend="ort-cpu", threads=args.threads)
    job = Job(str(args.bundle.resolve()), None, PROMPT, "ort-cpu", args.threads, tempfile.gettempdir())
    long: list[list[dict[str, Any]]] = [[], []]
    short: list[dict[str, Any]] = []
    plain: list[list[dict[str, float]]] = [[], []]
    with Subject(job) as first, Subject(job) as second:
        for i in range(args.rounds + 2):
            if sys.stderr.isatty():
                print(f"\r  round {i} of {args.rounds + 1}", end="", file=sys.stderr)
            turn = [rested(subject.answer, args.new_tokens) for subject in (first, second)]
            once = rested(first.answer, 1)
            alone = [rested(answered, bare, n) for n in (args.new_tokens, 1)]
            if i < 2:
                continue
            for kept, answer in zip(long, turn, strict=True):
                kept.append(answer)
            short.append(once)
            for found, answer in zip(plain, alone, strict=True):
                found.append(answer)
    steps = args.new_tokens - 1
    profiled, unprofiled = (
        {key: per_token(*sides, key, steps) for key in ("wall_ms", "cpu_ms")}
        for sides in ((long[0], short), plain)
    )
    control = {
        key: ratio([a[key] for a in long[1]], [a[key] for a in long[0]])
        for key in ("wall_ms", "ttft_ms", "tpot_ms", "cpu_ms")
    }
    result = {
        "bundle": args.bundle.name,
        "rounds": args.rounds,
        "new_tokens": args.new_tokens,
        "sum_of_stages": ratio([sum(a["stages_ms"].values()) for a in long[0]], [a["wall_ms"] for a in long[0]]),
        "overhead": {key: ratio(profiled[key], unprofiled[key]) for key in profiled},
        "tpot_ms": float(np.median(profiled["wall_ms"])),
        "control": control,
    }  # fmt: skip
    print(json.dumps(result) if args.json else table(result))


def per_token(long: list[dict[str, Any]], short: list[dict[str, Any]], key: str, steps: int) -> list[float]:
    """Milliseconds of a step, by what a long answer takes more than one of a single token."""
    return [(whole[key] - one[key]) / steps for whole, one in zip(long, short, strict=True)]


def answered(vlm: Vlm, new_tokens: int) -> dict[str, float]:
    """Times of one answer without any clock inside."""
    picture, sampling = drawn(), Sampling(ignore_eos=True)
    began, cpu_began = time.perf_counter(), time.process_time()
    vlm.generate(PROMPT, [picture], max_new_tokens=new_tokens, sampling=sampling)
    wall_ms, cpu_ms = (time.perf_counter() - began) * 1000, (time.process_time() - cpu_began) * 1000
    return {"wall_ms": wall_ms, "cpu_ms": cpu_ms}


def rested(ask: Any, *given: Any) -> Any:
    """What it answers, when the threads of the one before have gone to sleep."""
    time.sleep(PAUSE_SECONDS)
    return ask(*given)


def ratio(above: Sequence[float], below: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """Ratio of the medians, with the ends of its 95 % interval: rounds drawn anew, both sides of one together."""
    pairs = np.array([above, below])
    picks = np.random.default_rng(0).integers(0, pairs.shape[1], (draws, pairs.shape[1]))
    medians = np.median(pairs[:, picks], axis=-1)
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    whole = np.median(pairs, axis=-1)
    return float(whole[0] / whole[1]), float(low), float(high)


def table(result: dict[str, Any]) -> str:
    """A line a promise: the number, its interval, its limit."""
    rows = [("stages over end to end", result["sum_of_stages"], "0.95–1.05")]
    rows += [
        (f"TPOT profiled over not, {key[:-3]}", found, "≤ 1.02") for key, found in result["overhead"].items()
    ]
    rows += [
        (f"itself over itself, {key[:-3]}", found, "0.97–1.03") for key, found in result["control"].items()
    ]
    lines = [f"{result['bundle']}: {result['rounds']} rounds, TPOT {result['tpot_ms']:.2f} ms"]
    lines += [
        f"{name:<32}{value:>8.4f}  ({low:.4f}–{high:.4f})  limit {limit}"
        for name, (value, low, high), limit in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
