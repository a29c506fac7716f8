#!/usr/bin/env python3
"""Hold every reducer that acts before the decoder to its NumPy reference, at every size and budget, on random inputs.

    python scripts/check_reducers.py                                  # an hour on one core
    python scripts/check_reducers.py --methods vispruner,dpp --seeds 20 --json

For 100 seeds, N = 576 and 64 tokens and K = 16, 64, 192: torch keeps the tokens that an independent float64 reference keeps,
with features within 1e-4, and a graph of the reducer alone in ONNX Runtime gives what torch gives. Excepted are single
decisions between scores within 1e-6 of each other: the reference then takes the side of the result, and must still end
there (*ties*). Prints the counts, and exits 1 if anything differs. The tests run a spread of this.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from reducer_cases import (
    Inputs,
    Result,
    acts_before_the_decoder,
    assert_right,
    export_alone,
    least_keep,
    random_inputs,
    run,
)

from fico_export import reducers

CHANNELS = 256  # above the largest K: a token is then never the others' combination
CASES = [((24, 24), 16), ((24, 24), 64), ((24, 24), 192), ((8, 8), 16)]
OF_A_LAYER = {"ficoco-v": (533,), "tome": (551,)}  # what their first layer leaves of 576 on the way to 64


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--methods", default="", help="names, comma separated (default all)")
    parser.add_argument("--seeds", type=int, default=100, help="inputs of each size and budget (default 100)")
    parser.add_argument("--no-onnx", action="store_true", help="torch against the reference alone")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()

    ort.set_default_logger_severity(3)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    known = [name for name in reducers.names() if acts_before_the_decoder(name) and name != "none"]
    rows = []
    print(
        f"{'method':<12}{'N':>5}{'K':>5}{'equal':>7}{'ties':>6}{'error':>9}{'ORT':>9}{'s':>6}",
        file=sys.stderr,
    )
    for method in args.methods.split(",") if args.methods else known:
        for grid, keep in cases_of(method):
            row = check(method, grid, keep, args.seeds, not args.no_onnx)
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps(rows))
    return int(any(row["wrong"] or row["onnx_wrong"] for row in rows))


def cases_of(method: str) -> list[tuple[tuple[int, int], int]]:
    cases = [(grid, max(keep, least_keep(method, grid[0] * grid[1], True))) for grid, keep in CASES]
    return sorted({*cases, *(((24, 24), keep) for keep in OF_A_LAYER.get(method, ()))}, reverse=True)


def check(method: str, grid: tuple[int, int], keep: int, seeds: int, onnx: bool) -> dict[str, Any]:
    began = time.perf_counter()
    row: dict[str, Any] = {"method": method, "tokens": grid[0] * grid[1], "keep": keep, "seeds": seeds}
    row |= {
        "equal": 0,
        "ties": 0,
        "wrong": [],
        "error": 0.0,
        "onnx_equal": 0,
        "onnx_ties": 0,
        "onnx_wrong": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        alone = None
        if onnx:
            alone = export_alone(
                method, random_inputs(0, grid=grid, channels=CHANNELS), keep, Path(folder) / "alone.onnx"
            )
        for seed in range(seeds):
            inputs = random_inputs(seed, grid=grid, channels=CHANNELS)
            result = run(method, inputs, keep)
            outcome, error = judge(method, inputs, keep, result)
            count(row, "", outcome, seed)
            row["error"] = max(row["error"], error)
            if alone:
                got = alone(inputs)
                same = torch.equal(got.indices, result.indices)
                if same and torch.allclose(got.tokens, result.tokens, atol=1e-4):
                    outcome = "equal"
                else:
                    outcome = "wrong" if judge(method, inputs, keep, got)[0] == "wrong" else "ties"
                count(row, "onnx_", outcome, seed)
    row["seconds"] = time.perf_counter() - began
    return row


def judge(method: str, inputs: Inputs, keep: int, result: Result) -> tuple[str, float]:
    """`equal` to the reference, equal but for `ties`, or `wrong`; and the largest difference of the features."""
    try:
        tied, error = assert_right(method, inputs, keep, result)
    except (AssertionError, ValueError):
        return "wrong", 0.0
    return "ties" if tied else "equal", error


def count(row: dict[str, Any], graph: str, outcome: str, seed: int) -> None:
    if outcome == "wrong":
        row[graph + "wrong"].append(seed)
    else:
        row[graph + outcome] += 1


def line(row: dict[str, Any]) -> str:
    onnx = f"{row['onnx_equal']}+{row['onnx_ties']}"
    wrong = [
        f"{graph}: seeds {row[key]}" for graph, key in (("torch", "wrong"), ("ORT", "onnx_wrong")) if row[key]
    ]
    return (
        f"{row['method']:<12}{row['tokens']:>5}{row['keep']:>5}{row['equal']:>7}{row['ties']:>6}{row['error']:>9.1e}"
        f"{onnx:>9}{row['seconds']:>6.0f}  {'WRONG ' if wrong else ''}{', '.join(wrong)}".rstrip()
    )


if __name__ == "__main__":
    sys.exit(main())
