#!/usr/bin/env python3
"""Export and answer at real size: wall time, peak memory, bytes written; first token, per token; beside llama.cpp.

    python scripts/bench_scale.py --size 1b                          # export a random checkpoint to INT4, load, answer
    python scripts/bench_scale.py --bundle engines/… --size 7b       # of a bundle that is there
    LLAMA_CPP_BIN=…/bin python scripts/bench_scale.py --size 7b --quantize-head int8      # against llama-bench, Q4_0, in turns

Every measurement runs in a process of its own, whose memory is that of it and its children together. A machine's speed
drifts, so the sides take turns, and what to quote is the ratio of the medians.
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
from typing import Any

POLL_SECONDS = 0.02
QWEN = ("qwen2.5-vl-3b", "qwen3-vl-2b", "qwen3-vl-4b")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size",
        choices=("tiny", "1b", "7b", "13b", *QWEN),
        default="1b",
        help="of the random weights",
    )
    parser.add_argument("--bundle", type=Path, help="measure this one instead of exporting")
    parser.add_argument("--target", default="ort")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--quantize-head", default="", help="int8 or int4; FP16 by default")
    parser.add_argument("--method", default="ficoco-v")
    parser.add_argument("--keep", type=int, default=64)
    parser.add_argument("--resolution", help="HxW, of a Qwen-VL")
    parser.add_argument(
        "--prompts", default="124,636", help="tokens of the prompts to time, as many as there are"
    )
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 for one per physical core")
    parser.add_argument("--work", type=Path, help="keep checkpoint, bundle and GGUF here, to use them again")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--job", choices=sorted(JOBS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(JOBS[arguments.job](arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="fico-bench-") as name:
        result = measure(arguments, arguments.work or Path(name))
    print(json.dumps(result, indent=1) if arguments.json else table(result))


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All sides, in turns."""
    work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"size": arguments.size, "target": arguments.target}
    if arguments.bundle is None:
        checkpoint = work / f"llava-{arguments.size}"
        if not (checkpoint / "model.safetensors.index.json").exists():
            say(f"write {checkpoint.name}")
            job(arguments, "checkpoint", work)
        arguments.bundle = work / f"bundle-{arguments.size}-{arguments.target}-{arguments.precision}"
        say(f"export to {arguments.bundle}")
        result["export"] = job(arguments, "export", work)
    binaries, gguf = os.environ.get("LLAMA_CPP_BIN"), work / f"llama-{arguments.size}-q4_0.gguf"
    if binaries and not gguf.exists():
        say(f"write {gguf.name}")
        job(arguments, "gguf", work)
    ours, theirs = [], []
    for turn in range(arguments.repeats):
        say(f"turn {turn + 1} of {arguments.repeats}")
        ours.append(job(arguments, "answer", work))
        if binaries:
            theirs.append(llama_bench(Path(binaries), gguf, arguments))
    result["fico_export"] = medians(ours)
    if theirs:
        result["llama.cpp Q4_0"] = medians(theirs)
        result["ratio"] = {
            k: result["fico_export"][k] / v
            for k, v in result["llama.cpp Q4_0"].items()
            if k in result["fico_export"]
        }
    return result


def job(arguments: argparse.Namespace, name: str, work: Path) -> dict[str, float]:
    """Run one of `JOBS` in a process of its own; its numbers, wall time and peak memory."""
    command = [sys.executable, __file__, "--job", name, "--work", str(work)]
    for key in (
        "size",
        "bundle",
        "target",
        "precision",
        "quantize_head",
        "method",
        "keep",
        "resolution",
        "prompts",
        "new_tokens",
        "threads",
    ):
        value = getattr(arguments, key)
        command += [f"--{key.replace('_', '-')}", str(value)] if value not in (None, "") else []
    start = time.perf_counter()
    output, peak = run(command)
    return {**json.loads(output), "wall s": time.perf_counter() - start, "peak GB": peak / 1e9}


def run(command: list[str]) -> tuple[str, int]:
    """Standard output, and the largest memory of the process and its children together, in bytes."""
    peak = 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(POLL_SECONDS)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        output.seek(0)
        return output.read(), peak


def tree_bytes(pid: int) -> int:
    """Resident memory of a process and all below it, files it has mapped included; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(tree_bytes(int(child)) for child in children)


def write_checkpoint(arguments: argparse.Namespace) -> dict[str, float]:
    if arguments.size in QWEN:
        from random_qwen import write_checkpoint as write
    else:
        from random_models import write_checkpoint as write

    write(arguments.work / f"llava-{arguments.size}", arguments.size)
    return {}


def write_gguf(arguments: argparse.Namespace) -> dict[str, float]:
    from random_models import write_gguf as write

    write(arguments.work / f"llama-{arguments.size}-q4_0.gguf", arguments.size)
    return {}


def export(arguments: argparse.Namespace) -> dict[str, float]:
    """The whole bundle; bytes written are those of its files that the checkpoint does not share."""
    import fico_export

    bundle = fico_export.export(
        arguments.work / f"llava-{arguments.size}", arguments.keep, method=arguments.method,
        precision=arguments.precision, target=arguments.target, out=arguments.bundle, overwrite=True, verify=False,
        quantize_head=arguments.quantize_head or None,
        resolution=(arguments.resolution,) if arguments.resolution else None,
    )  # fmt: skip
    stats = [path.stat() for path in bundle.rglob("*") if path.is_file()]
    return {"written GB": sum(s.st_size for s in stats if s.st_nlink == 1) / 1e9}


def answer(arguments: argparse.Namespace) -> dict[str, float]:
    """Load, answer about an image, then prefill and decode by themselves."""
    import numpy as np
    from PIL import Image

    import fico_export
    from fico_export.runtime.backends.base import Step

    start = time.perf_counter()
    vlm = fico_export.load(arguments.bundle, backend="ort-cpu", threads=arguments.threads)
    found = {"load s": time.perf_counter() - start}
    picture = Image.radial_gradient("L").resize((336, 336)).convert("RGB")
    said = vlm.generate("What is in this picture?", [picture], max_new_tokens=8)
    found |= {"picture to first token ms": said.ttft_ms, "per token ms": said.tpot_ms or 0.0}
    generator = np.random.default_rng(0)
    vocabulary, axes = vlm.manifest.decoder.vocab_size, vlm.layout.axes
    for length in map(int, arguments.prompts.split(",")):
        if length + arguments.new_tokens > vlm.manifest.decoder.context:
            continue
        cache, embeds = vlm.decoder.new_cache(), vlm.embed(generator.integers(3, vocabulary, length).tolist())
        start = time.perf_counter()
        vlm.decoder.step([Step(cache, embeds, np.tile(np.arange(length), (axes, 1)))])
        found[f"prefill {length} tok/s"] = length / (time.perf_counter() - start)
    cache = vlm.decoder.new_cache()
    vlm.decoder.step([Step(cache, vlm.embed([3]), np.zeros((axes, 1), np.int64))])
    start = time.perf_counter()
    for at in range(arguments.new_tokens):
        embeds = vlm.embed([int(generator.integers(3, vocabulary))])
        vlm.decoder.step([Step(cache, embeds, np.full((axes, 1), at + 1))])
    found["decode tok/s"] = arguments.new_tokens / (time.perf_counter() - start)
    return found


JOBS = {"answer": answer, "checkpoint": write_checkpoint, "export": export, "gguf": write_gguf}


def llama_bench(binaries: Path, gguf: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """The same prompts and tokens by llama.cpp."""
    from fico_export.runtime.backends.ort.threads import default_threads

    command = [
        str(binaries / "llama-bench"), "-m", str(gguf), "-t", str(arguments.threads or default_threads()),
        "-p", arguments.prompts, "-n", str(arguments.new_tokens), "-r", "1", "-o", "json",
    ]  # fmt: skip
    output, peak = run(command)
    found = {"peak GB": peak / 1e9}
    for row in json.loads(output):
        key = f"prefill {row['n_prompt']} tok/s" if row["n_prompt"] else "decode tok/s"
        found[key] = row["avg_ts"]
    return found


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """Of each number over the turns."""
    return {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}


def table(result: dict[str, Any]) -> str:
    """One line a number; a column a side."""
    lines = [f"{'export ' + k:<28}{v:>12.2f}" for k, v in result.get("export", {}).items()]
    sides = [s for s in ("fico_export", "llama.cpp Q4_0", "ratio") if s in result]
    lines.append(f"{result['size']:<28}" + "".join(f"{side:>16}" for side in sides))
    for key in result["fico_export"]:
        row = "".join(f"{result[s][key]:>16.2f}" if key in result[s] else " " * 16 for s in sides)
        lines.append(f"{key:<28}{row}")
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
