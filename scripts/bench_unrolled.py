#!/usr/bin/env python3
"""What a greedy reducer's Scan saves against K copies of its body: nodes, time to export, to compile in TensorRT-RTX, and to run.

    python scripts/bench_unrolled.py dpp divprune --keep 192

The graphs hold the reducer alone, on 576 random tokens of 1 024 channels; both run in alternation on ONNX Runtime's CPU provider.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import onnx_ir as ir
import onnxruntime as ort
import rtx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from reducer_cases import export_alone, random_inputs


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("methods", nargs="+", help="names of greedy methods")
    parser.add_argument("--keep", type=int, default=192, help="budget (default 192)")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each (default 9)")
    args = parser.parse_args()

    ort.set_default_logger_severity(3)
    inputs = random_inputs(0, grid=(24, 24), channels=1024)
    print(f"{'method':<12}{'form':<10}{'nodes':>7}{'export, s':>11}{'compile, s':>12}{'run, ms':>9}")
    for method in args.methods:
        made: dict[str, tuple[list[str], Callable[[], object]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for form in ("scan", "unrolled"):
                path = Path(folder) / f"{form}.onnx"
                # What `greedy` asks before it emits a Scan.
                with mock.patch("torch.compiler.is_exporting", return_value=form == "scan"):
                    alone, export_s = timed(partial(export_alone, method, inputs, args.keep, path))
                _, compile_s = timed(partial(rtx.compile_engine, path))
                nodes = sum(1 for _ in ir.load(path).graph.all_nodes())
                cells = [f"{nodes:>7}", f"{export_s:>11.1f}", f"{compile_s:>12.1f}"]
                made[form] = cells, partial(alone, inputs)
        runs: dict[str, list[float]] = {form: [] for form in made}
        for i in range(1 + args.repeats):
            for form, (_, run) in made.items():
                seconds = timed(run)[1]
                if i:
                    runs[form].append(seconds)
        for form, (cells, _) in made.items():
            print(f"{method:<12}{form:<10}{''.join(cells)}{1000 * statistics.median(runs[form]):>9.1f}")


def timed(work: Callable[[], object]) -> tuple[object, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


if __name__ == "__main__":
    main()
