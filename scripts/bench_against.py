#!/usr/bin/env python3
"""Time what every user waits for, by this code and by that of another commit in turns: `--help`, the import, an export, a token.

    python scripts/bench_against.py COMMIT

The other commit is checked out beside this one and runs in the same environment. A machine's speed drifts, so what to quote is the
ratio of the medians; two runs of one code differ by some per cent too, which the last column shows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPORT = (
    "import fico_export, sys; fico_export.export('demo', 64, method='dpp', out=sys.argv[1], verify=False)"
)
# Timed from outside: commits differ in what their tpot_ms counts, such as the token's text.
STEP = """
import fico_export, statistics, sys, time
from fico_export.runtime.sampling import Sampling
vlm = fico_export.load(sys.argv[1], backend="ort-cpu", threads=1)
def token_ms():
    start = time.perf_counter()
    answer = vlm.generate("What is it?", max_new_tokens=48, sampling=Sampling(ignore_eos=True))
    return ((time.perf_counter() - start) * 1000 - answer.ttft_ms) / 47
print(statistics.median([token_ms() for _ in range(6)][1:]))
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="to compare with")
    parser.add_argument("--rounds", type=int, default=7, help="of each measurement (default 7)")
    parser.add_argument("--exports", type=int, default=3, help="rounds of the export (default 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run(
            ["git", "worktree", "add", "-q", "--detach", str(work / "old"), given.commit],
            cwd=ROOT,
            check=True,
        )
        try:
            found = measure(work, given.rounds, given.exports)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(work / "old")], cwd=ROOT, check=True)
    print(json.dumps(found) if given.json else table(found))


def measure(work: Path, rounds: int, exports: int) -> dict[str, dict[str, float]]:
    """Medians of old and new, and of new measured a second time, in ms."""
    sides = {"old": work / "old", "new": ROOT, "again": ROOT}
    python = [sys.executable, "-c"]
    times: dict[str, dict[str, list[float]]] = {}

    def note(what: str, side: str, ms: float) -> None:
        times.setdefault(what, {}).setdefault(side, []).append(ms)

    for i in range(exports):
        for side, tree in sides.items():
            bundle = work / f"bundle-{side}-{i}"
            note("export of the demo", side, timed([*python, EXPORT, str(bundle)], tree)[0])
    for _ in range(rounds):
        for side, tree in sides.items():
            note("fico --help", side, timed([sys.executable, "-m", "fico_export", "--help"], tree)[0])
            note("import fico_export", side, timed([*python, "import fico_export"], tree)[0])
            said = timed([*python, STEP, str(work / f"bundle-{side}-0")], tree)[1]
            note("a token of an answer", side, float(said))
    return {
        what: {side: statistics.median(each) for side, each in of_side.items()}
        for what, of_side in times.items()
    }


def timed(line: list[str], tree: Path) -> tuple[float, str]:
    """Milliseconds that a command takes on the code in a tree, and what it says."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    start = time.perf_counter()
    done = subprocess.run(line, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return (time.perf_counter() - start) * 1000, done.stdout


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| what | before | now | ratio | now, a second time |", "|---|---|---|---|---|"]
    for what, ms in found.items():
        again = ms["again"] / ms["new"]
        lines.append(
            f"| {what} | {ms['old']:.4g} ms | {ms['new']:.4g} ms | {ms['new'] / ms['old']:.2f} | {again:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
