"""Spoils files of every kind that this package reads, and has it read them: each is read, or refused with a hint.

    python scripts/fuzz.py --seed 1 --count 2000
    python scripts/fuzz.py --seed 1 --only manifest:17      one case again, with its trace

A finding is any exception but the package's own, an error without words, a case over a minute, over 4 GB of memory, or the end of
the process. Cases run in one process, which is started again where one ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_subjects import SUBJECTS, Subject

from fico_export.errors import FicoError

SECONDS, BYTES = 60.0, 4 * 10**9


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `read`, `refused`, or what was found; seconds, and the peak of memory in bytes."""

    subject: str
    number: int
    result: str
    seconds: float
    peak: int

    @property
    def found(self) -> bool:
        """Whether it is a fault."""
        return self.result not in ("read", "refused")


class TooSlowError(Exception):
    """A case ran out of time."""


def run_case(subject: Subject, whole: Path, seed: int, number: int, seconds: float = SECONDS) -> Outcome:
    """Spoil a copy of a subject's files and have them read."""
    rng = random.Random(f"{seed}:{subject.name}:{number}")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(shutil.copytree(whole, Path(work) / "files"))
        subject.spoil(rng, folder)
        began = time.monotonic()
        signal.signal(signal.SIGALRM, _too_slow)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            result = _read(subject, folder)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    took = time.monotonic() - began
    if peak > BYTES:
        result = f"memory: {peak / 1e9:.1f} GB"
    elif took > seconds:
        result = f"time: {took:.0f} s"
    return Outcome(subject.name, number, result, took, peak)


def _read(subject: Subject, folder: Path) -> str:
    try:
        subject.read(folder)
    except FicoError as error:
        try:
            json.dumps([error.what, error.fix]).encode()
        except (TypeError, ValueError):
            return "an error that cannot be written as JSON"
        return "refused" if error.what.strip() and error.fix.strip() else "an error without words"
    except TooSlowError:
        return "time"
    except BaseException as error:
        if os.environ.get("FICO_FUZZ_TRACE"):
            traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:120]}"
    return "read"


def _too_slow(*_: object) -> None:
    raise TooSlowError


def cases(seed: int, count: int) -> list[tuple[str, int]]:
    """Names and numbers of the cases, every subject in turn; by its weight some come more often."""
    rng = random.Random(seed)
    names = [name for name, subject in SUBJECTS.items() for _ in range(subject.weight)]
    seen: Counter[str] = Counter()
    chosen = []
    for i in range(count):
        name = names[i] if i < len(names) else rng.choice(names)
        chosen.append((name, seen[name]))
        seen[name] += 1
    return chosen


# ---- the process that reads


def work(seed: int, wholes: Path) -> None:
    """Run the cases that come on stdin, a line each; say what became of them on stdout."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no outcome
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    size = (
        int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        if Path("/proc/self/statm").exists()
        else 0
    )
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + 2 * BYTES, limit))
    for line in sys.stdin:
        name, number = line.split()
        outcome = run_case(SUBJECTS[name], wholes / name, seed, int(number))
        print(json.dumps(vars(outcome)), file=out, flush=True)


class Reader:
    """The process that reads; started again when it has ended."""

    def __init__(self, seed: int, wholes: Path) -> None:
        self._command = [sys.executable, __file__, "--seed", str(seed), "--work", str(wholes)]
        self._process: subprocess.Popen[str] | None = None

    def run(self, name: str, number: int) -> Outcome:
        """One case, which may end the process."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        process, began = self._process, time.monotonic()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{name} {number}\n")
        process.stdin.flush()
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()  # type: ignore[union-attr]
        try:
            line = lines.get(timeout=3 * SECONDS)
        except queue.Empty:
            line = ""
        if line:
            return Outcome(**json.loads(line))
        process.kill()
        with process:
            status, self._process = process.wait(), None
        return Outcome(name, number, f"the process ended: {status}", time.monotonic() - began, 0)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with self._process as process:  # closes its streams, and waits
                assert process.stdin is not None
                process.stdin.close()


# ---- the command


def outcomes(seed: int, chosen: list[tuple[str, int]], wholes: Path) -> Iterator[Outcome]:
    """What becomes of each case."""
    reader = Reader(seed, wholes)
    try:
        for name, number in chosen:
            yield reader.run(name, number)
    finally:
        reader.close()


def write_wholes(folder: Path, names: set[str]) -> None:
    """The files of each subject, unspoilt."""
    for name in sorted(names):
        (folder / name).mkdir()
        SUBJECTS[name].write(folder / name)


def summary(found: list[Outcome]) -> str:
    """A line a subject."""
    lines = [f"{'subject':<20}{'cases':>7}{'read':>7}{'refused':>9}{'found':>7}{'slowest':>10}"]
    for name in SUBJECTS:
        own = [outcome for outcome in found if outcome.subject == name]
        if own:
            results = Counter(outcome.result for outcome in own)
            faults = sum(outcome.found for outcome in own)
            slowest = max(outcome.seconds for outcome in own)
            lines.append(
                f"{name:<20}{len(own):>7}{results['read']:>7}{results['refused']:>9}{faults:>7}{slowest:>8.1f} s"
            )
    return "\n".join(lines)


def main() -> int:
    """Run the cases and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases")
    parser.add_argument("--count", type=int, default=200, help="number of cases")
    parser.add_argument(
        "--only", metavar="SUBJECT[:K]", help=f"one subject, or one case of it: {', '.join(SUBJECTS)}"
    )
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given: Any = parser.parse_args()
    if given.work:
        work(given.seed, given.work)
        return 0
    chosen = cases(given.seed, given.count)
    if given.only:
        name, _, number = given.only.partition(":")
        chosen = [(name, int(number))] if number else [(name, i) for i in range(given.count)]
        os.environ["FICO_FUZZ_TRACE"] = "1"
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        write_wholes(Path(folder), {name for name, _ in chosen})
        for outcome in outcomes(given.seed, chosen, Path(folder)):
            found.append(outcome)
            if outcome.found:
                print(
                    f"FOUND {outcome.result}\n  python scripts/fuzz.py --seed {given.seed} --only {outcome.subject}:{outcome.number}",
                    flush=True,
                )
    print(summary(found))
    faults, peak = sum(o.found for o in found), max(o.peak for o in found)
    print(
        f"{len(found)} cases, {faults} found, {time.monotonic() - began:.0f} s, at most {peak / 1e9:.2f} GB of memory"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
