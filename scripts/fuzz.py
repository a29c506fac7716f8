"""Damages files as a stranger could, reads them, and says what was neither read nor refused.

    python scripts/fuzz.py --seed 7 --count 500              # over all kinds of files
    python scripts/fuzz.py --seed 7 --count 500 --only 123   # one case again, its files kept in fuzz-123/

A case is right where what reads it succeeds, or raises the package's own error with a fix; it is wrong where anything else is
raised, it takes over a minute, or 4 GB. Everything runs in this process; a case follows from the seed and its number alone.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

os.environ.setdefault("RUST_BACKTRACE", "0")
sys.path.insert(0, str(Path(__file__).parent))

import fuzz_mutators
import fuzz_subjects

from fico_export.errors import FicoError

MOST_SECONDS = 60
MOST_BYTES = 4 * 10**9


class TooSlow(BaseException):
    """A case took over a minute. No Exception: whoever catches all of them must not catch this."""


@dataclass
class Found:
    """What a campaign found: cases by subject and end, and those that went wrong."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[tuple[int, str, str, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    most_bytes: int = 0


def case(seed: int, number: int, subjects: fuzz_subjects.Subjects, folder: Path) -> tuple[str, str, str]:
    """Run one case in an empty folder: the subject, how it ended (read, refused or wrong), and what was said."""
    chance = random.Random(f"{seed}:{number}")
    subject = subjects.pick(number)
    files = subject.write(folder)
    said = [fuzz_mutators.mutate(chance.choice(files), chance) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
    done = "; ".join(said)
    try:
        subject.read(folder, chance)
    except FicoError as error:
        if not error.what.strip() or not error.fix.strip():
            return subject.name, "wrong", f"{done}: an error without a fix: {error.what!r}"
        return subject.name, "refused", f"{done}: {error.what}"
    except (KeyboardInterrupt, SystemExit, TooSlow):
        raise
    except BaseException as error:  # a panic of a Rust library is none of Exception's
        last = "".join(traceback.format_exception(error)[-3:])
        return subject.name, "wrong", f"{done}: {type(error).__name__}: {str(error)[:300]}\n{last}"
    return subject.name, "read", done


def campaign(
    seed: int, numbers: range, subjects: fuzz_subjects.Subjects, keep: Path | None = None, show: bool = False
) -> Found:
    """Run cases one after another."""
    found = Found()
    for number in numbers:
        folder = keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
        before, began = _peak_bytes(reset=True), time.perf_counter()
        print(f"\rcase {number} ", end="", file=sys.stderr, flush=True) if show else None
        with _limits(number):
            try:
                name, end, said = case(seed, number, subjects, folder)
            except TooSlow:
                name, end, said = subjects.pick(number).name, "wrong", f"took over {MOST_SECONDS} s"
        took, grown = time.perf_counter() - began, _peak_bytes() - before
        if took > MOST_SECONDS and end != "wrong":  # whoever caught it
            end, said = "wrong", f"{said}: took {took:.0f} s"
        if grown > MOST_BYTES:
            end, said = "wrong", f"{said}: took {grown / 1e9:.1f} GB"
        found.ends[name, end] += 1
        found.slowest = max(found.slowest, (took, number))
        found.most_bytes = max(found.most_bytes, grown)
        if end == "wrong":
            found.wrong.append((number, name, end, said))
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return found


@contextmanager
def _limits(number: int) -> Iterator[None]:
    """Raise TooSlow in Python's own code after a minute; end the process, with its place, where a library does not return."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise TooSlow(number)

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(MOST_SECONDS)
    faulthandler.dump_traceback_later(2 * MOST_SECONDS, exit=True)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def _peak_bytes(reset: bool = False) -> int:
    """The most memory that this process had since the last reset."""
    if reset:
        with suppress(OSError):  # where it is not ours to reset, it is the most there ever was
            Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


def summary(found: Found) -> list[str]:
    """A line for each kind of file, and the totals."""
    lines = [f"{'files':<14}{'read':>8}{'refused':>9}{'wrong':>7}"]
    for name in sorted({name for name, _ in found.ends}):
        counts = (found.ends[name, end] for end in ("read", "refused", "wrong"))
        lines.append(f"{name:<14}" + "".join(f"{n:>{w}}" for n, w in zip(counts, (8, 9, 7), strict=True)))
    seconds, number = found.slowest
    lines.append(
        f"{sum(found.ends.values())} cases, {len(found.wrong)} wrong; slowest {seconds:.1f} s (case {number}), "
        f"most memory of a case {found.most_bytes / 1e6:.0f} MB"
    )
    return lines


def main() -> int:
    """Run the campaign that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="cases follow from it and their number")
    parser.add_argument("--count", type=int, default=200, help="number of cases")
    parser.add_argument("--only", type=int, metavar="K", help="run case K alone and keep its files")
    parser.add_argument(
        "--subject", choices=fuzz_subjects.NAMES, action="append", help="files of this kind only"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    soft = int(1.5 * MOST_BYTES) + 2 * 10**9  # so that the machine is not ended with what runs away
    resource.setrlimit(resource.RLIMIT_DATA, (soft, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    numbers = range(args.count) if args.only is None else range(args.only, args.only + 1)
    keep = None if args.only is None else Path(f"fuzz-{args.only}")
    if keep is not None:
        keep.mkdir()
    with tempfile.TemporaryDirectory(prefix="fuzz-originals-") as originals:
        subjects = fuzz_subjects.Subjects(Path(originals), args.subject or fuzz_subjects.NAMES)
        found = campaign(args.seed, numbers, subjects, keep, show=sys.stderr.isatty())
    for number, name, _, said in found.wrong:
        chosen = "".join(f" --subject {n}" for n in args.subject or ())
        print(
            f"WRONG {name}: {said}\n  again: python scripts/fuzz.py --seed {args.seed}{chosen} --only {number}\n"
        )
    print("\n".join(summary(found)))
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
