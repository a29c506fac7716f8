#!/usr/bin/env python3
"""Measure all that only a GPU can show, in one run; see `gpu_day.sh`. Every part has a time limit, and none stops another.

python scripts/gpu_day.py --out engines/gpu_day.json      # on a machine with a GPU; --rehearse on one without
python scripts/gpu_day.py --docs engines/gpu_day.json     # docs/gpu.md from the results, which are kept as docs/gpu.json
python scripts/gpu_day.py --wheels FOLDER --there FILE    # what to carry to a machine without a network (`gpu_wheels.py`)
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gpu_docs
import gpu_parts
import gpu_wheels
from gpu_parts import Part, Step

from fico_export.bundle.output import anything, written_file
from fico_export.devices import gpu
from fico_export.errors import FicoError
from fico_export.profile import machine

ROOT = Path(__file__).parents[1]
SECONDS = 480
ERROR_CHARACTERS = 2000


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--rehearse", action="store_true", help="everything but the device, on the CPU")
    parser.add_argument(
        "--parts", default=",".join(gpu_parts.PARTS), help="those to run, comma separated (default: all)"
    )
    parser.add_argument(
        "--size", choices=("demo", "1b", "7b"), help="model to measure (default 1b, or demo to rehearse)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all parts (default {SECONDS})")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="factor of all limits, for a busy machine (default 1)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "engines" / "gpu_day.json", help="results as JSON")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="make docs/gpu.md from results")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="list and split the wheels to carry")
    parser.add_argument(
        "--there", type=Path, metavar="FILE", help="`pip freeze` of the machine, for --wheels"
    )
    arguments = parser.parse_args()
    try:
        if arguments.docs:
            gpu_docs.write(arguments.docs, ROOT / "docs")
        elif arguments.wheels:
            print(gpu_wheels.prepare(arguments.wheels, gpu_wheels.needed(arguments.there)))
        else:
            run(arguments)
    except FicoError as error:
        sys.exit(f"error: {error.what}\n hint: {error.fix}")


def run(arguments: argparse.Namespace) -> None:
    """Run the parts that were asked for; results are written after every step, and what broke is among them."""
    began = time.monotonic()
    size = arguments.size or ("demo" if arguments.rehearse else "1b")
    wanted = gpu_parts.chosen(arguments.parts)
    result: dict[str, Any] = {
        "rehearsal": arguments.rehearse,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
        "size": size,
        "machine": machine.describe().model_dump(mode="json"),
        "gpu": (here := gpu.find()) and asdict(here),
        "parts": [],
    }
    with tempfile.TemporaryDirectory(prefix="fico-gpu-") as name:
        day = gpu_parts.Day(Path(name), size, here.compute_capability if here else None, arguments.rehearse)
        for make in wanted:
            done: dict[str, Any] = {"part": (part := make(day)).name, "skipped": part.skipped, "steps": []}
            result["parts"].append(done)
            end = min(
                began + arguments.seconds * arguments.patience,
                time.monotonic() + part.limit_s * arguments.patience,
            )
            for entry in steps(part, end):
                done["steps"].append(entry)
                result["seconds"] = round(time.monotonic() - began, 1)
                keep(arguments.out, result)
            result["seconds"] = round(time.monotonic() - began, 1)
            keep(arguments.out, result)
    say(f"results: {arguments.out}")


def steps(part: Part, end: float) -> Any:
    """Results of a part's steps, one by one; after one that the others need has failed, there are no more."""
    if part.skipped:
        say(f"{part.name}: skipped, {part.skipped}")
        return
    for step in part.steps:
        say(f"{part.name}: {step.name}")
        entry = result_of(step, end - time.monotonic())
        say(f"{part.name}: {step.name}: {entry['outcome']} in {entry['seconds']} s")
        yield entry
        if entry["outcome"] != "done" and step.needed:
            return


def result_of(step: Step, limit_s: float) -> dict[str, Any]:
    """Run a step; what it printed as JSON, or why it failed."""
    entry: dict[str, Any] = {
        "step": step.name,
        "command": shlex.join(step.command),
        "limit_s": round(max(limit_s, 0)),
    }
    if limit_s < 1:
        return entry | {"outcome": "no time left", "seconds": 0.0}
    began = time.monotonic()
    code, out, err = ended(step, limit_s)
    entry["seconds"] = round(time.monotonic() - began, 1)
    if code is None:
        return entry | {"outcome": "timed out", "error": (out + err)[-ERROR_CHARACTERS:]}
    try:
        numbers = step.read(out)
    except (ValueError, LookupError) as error:
        return entry | {
            "outcome": "failed",
            "error": f"exit {code}: {error}: {(out + err)[-ERROR_CHARACTERS:]}",
        }
    if code:
        return entry | {
            "outcome": "failed",
            "numbers": numbers,
            "error": f"exit {code}: {(out + err)[-ERROR_CHARACTERS:]}",
        }
    return entry | {"outcome": "done", "numbers": numbers}


def ended(step: Step, limit_s: float) -> tuple[int | None, str, str]:
    """Exit code and output of a step's process; None for the code where it was stopped, with all that it began."""
    environment = {**os.environ, **paths(), **step.environment}
    process = subprocess.Popen(
        [sys.executable if word == "python" else word for word in spelt_out(step.command)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return None, out, err
    return process.returncode, out, err


def paths() -> dict[str, str]:
    """Where Python finds this code, and ONNX Runtime the CUDA libraries that come as wheels beside torch's."""
    wheels = [str(lib) for folder in sys.path for lib in sorted(Path(folder or ".").glob("nvidia/*/lib"))]
    found = {"PYTHONPATH": [str(ROOT)], "LD_LIBRARY_PATH": wheels}
    return {
        name: os.pathsep.join([*first, *filter(None, [os.environ.get(name)])])
        for name, first in found.items()
        if first
    }


def spelt_out(command: list[str]) -> list[str]:
    """A command with `fico` as a module: the package may be on the path alone."""
    return ["python", "-m", "fico_export", *command[1:]] if command[0] == "fico" else command


def revision() -> str | None:
    """The commit that was measured, where this is a clone."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write what there is so far, aside and renamed."""
    with written_file(path, ours=anything) as partial:
        partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
