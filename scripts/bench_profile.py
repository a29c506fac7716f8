#!/usr/bin/env python3
"""Hold `fico profile` to its promises: stages sum to the whole, a bundle equals itself, measuring costs nothing.

    python scripts/bench_profile.py engines/demo-ficoco-v-k64-fp32           # prints each number and its limit
    python scripts/bench_profile.py BUNDLE --new-tokens 64 --rounds 40 --json

The bundle is loaded three times, twice as `fico profile` does, in processes of their own, and once in this one with the clocks
of its stages taken out. All three answer in alternation. What measuring costs is the ratio of the times per token by the wall
clock: a long answer less one of a single token, over the tokens between. The intervals are of the median, by bootstrap.
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
    short: list[float] = []
    plain: list[tuple[float, float]] = []
    with Subject(job) as first, Subject(job) as second:
        for i in range(args.rounds + 2):
            if sys.stderr.isatty():
                print(f"\r  round {i} of {args.rounds + 1}", end="", file=sys.stderr)
            turn = [rested(subject.answer, args.new_tokens) for subject in (first, second)]
            once = rested(first.answer, 1)["wall_ms"]
            alone = rested(wall_ms, bare, args.new_tokens), rested(wall_ms, bare, 1)
            if i < 2:
                continue
            for kept, answer in zip(long, turn, strict=True):
                kept.append(answer)
            short.append(once)
            plain.append(alone)
    steps = args.new_tokens - 1
    profiled = [(a["wall_ms"] - s) / steps for a, s in zip(long[0], short, strict=True)]
    unprofiled = [(whole - one) / steps for whole, one in plain]
    control = {
        key: ratio([a[key] for a in long[1]], [a[key] for a in long[0]])
        for key in ("wall_ms", "ttft_ms", "tpot_ms")
    }
    result = {
        "bundle": args.bundle.name,
        "rounds": args.rounds,
        "new_tokens": args.new_tokens,
        "sum_of_stages": ratio([sum(a["stages_ms"].values()) for a in long[0]], [a["wall_ms"] for a in long[0]]),
        "overhead": ratio(profiled, unprofiled),
        "tpot_ms": float(np.median(profiled)),
        "control": control,
    }  # fmt: skip
    print(json.dumps(result) if args.json else table(result))


def wall_ms(vlm: Vlm, new_tokens: int) -> float:
    """Of one answer without any clock inside."""
    picture, sampling = drawn(), Sampling(ignore_eos=True)
    began = time.perf_counter()
    vlm.generate(PROMPT, [picture], max_new_tokens=new_tokens, sampling=sampling)
    return (time.perf_counter() - began) * 1000


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
    rows.append(("TPOT profiled over not", result["overhead"], "≤ 1.02"))
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
