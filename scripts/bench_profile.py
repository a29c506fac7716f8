#!/usr/bin/env python3
"""Hold `fico profile` to its promises: stages sum to the whole, a bundle equals itself, measuring costs nothing.

    python scripts/bench_profile.py engines/demo-ficoco-v-k64-fp32           # prints each number and its limit
    python scripts/bench_profile.py BUNDLE --new-tokens 64 --rounds 40 --json

The control is `fico profile BUNDLE BUNDLE`. What measuring costs is measured in alternation with this process, where the clocks
of the stages are taken out: the ratio of the times per token by the wall clock, a long answer less one of a single token, over the
tokens between; with its 95 % interval. On a machine that others use, wall times say little: the ratio of CPU time, with --threads 1
so that none is spent waiting, says whether the work is the same.
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
from fico_export.profile.measure import PAUSE_SECONDS, ProfileRequest, profile
from fico_export.profile.picture import PROMPT, drawn
from fico_export.profile.subject import Subject
from fico_export.profile.worker import Job
from fico_export.runtime import conversation, scheduler
from fico_export.runtime.sampling import Sampling
from fico_export.runtime.vlm import Vlm

SMALL = ("preprocess", "embed")  # a millisecond or less, of which the machine's noise is much
WARM_UP = 2


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

    request = ProfileRequest(
        backend="ort-cpu", threads=args.threads, iterations=args.rounds, new_tokens=args.new_tokens
    )
    run = profile([args.bundle, args.bundle], request)
    result = {
        "bundle": args.bundle.name,
        "rounds": args.rounds,
        "new_tokens": args.new_tokens,
        "tpot_ms": run.bundles[0].tpot.median if run.bundles[0].tpot else None,
        "stages_over_end_to_end": [b.coverage for b in run.bundles],
        "control": {name: medians[1] for name, medians in run.ratios.items() if name not in SMALL},
        "overhead": overhead(args),
    }
    print(json.dumps(result) if args.json else table(result))


def overhead(args: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Time per token as it is profiled over that without the stages' clocks, by the wall's time and the CPU's."""
    conversation._Clock = NoClock  # type: ignore[assignment, misc]
    scheduler._note_time = lambda sequence, ms: None
    bare = fico_export.load(args.bundle, backend="ort-cpu", threads=args.threads)
    job = Job(str(args.bundle.resolve()), None, PROMPT, "ort-cpu", args.threads, tempfile.gettempdir())
    profiled: dict[int, list[dict[str, Any]]] = {args.new_tokens: [], 1: []}
    plain: dict[int, list[dict[str, Any]]] = {args.new_tokens: [], 1: []}
    with Subject(job) as subject:
        for i in range(WARM_UP + args.rounds):
            if sys.stderr.isatty():
                print(f"\r  round {i + 1} of {WARM_UP + args.rounds}", end="", file=sys.stderr)
            for tokens in profiled:
                pair = rested(subject.answer, tokens), rested(answered, bare, tokens)
                if i >= WARM_UP:
                    profiled[tokens].append(pair[0])
                    plain[tokens].append(pair[1])
    steps = args.new_tokens - 1
    return {
        key: ratio(*(per_token(*side.values(), key, steps) for side in (profiled, plain)))
        for key in ("wall_ms", "cpu_ms")
    }


def per_token(long: list[dict[str, Any]], short: list[dict[str, Any]], key: str, steps: int) -> list[float]:
    """Milliseconds of a step, by what a long answer takes more than one of a single token."""
    return [(whole[key] - one[key]) / steps for whole, one in zip(long, short, strict=True)]


def answered(vlm: Vlm, new_tokens: int) -> dict[str, float]:
    """Times of one answer without any clock inside."""
    picture, sampling = drawn(), Sampling(temperature=0, ignore_eos=True)
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
    """A line a promise: the number and its limit."""
    lines = [
        f"{result['bundle']}: {result['rounds']} rounds of {result['new_tokens']} tokens, TPOT {result['tpot_ms']:.2f} ms"
    ]
    rows = [
        ("stages over end to end", f"{share:.4f}", "0.95–1.05") for share in result["stages_over_end_to_end"]
    ]
    rows += [
        (f"itself over itself, {name}", f"{r:.4f}", "0.97–1.03") for name, r in result["control"].items()
    ]
    rows += [
        (f"TPOT profiled over not, {key[:-3]}", f"{value:.4f} ({low:.4f}–{high:.4f})", "≤ 1.02")
        for key, (value, low, high) in result["overhead"].items()
    ]
    return "\n".join([*lines, *(f"{name:<34}{found:<26}{limit}" for name, found, limit in rows)])


if __name__ == "__main__":
    main()
