"""The process that runs one bundle of a profile and answers when it is told to: `python -m fico_export.profile.worker`.

Lines of JSON come in on stdin and go out on what stdout was; whatever else is printed goes to stderr. The first line is a `Job`;
then come numbers, the tokens of an answer that is wanted, and `null` at the end. A process for each bundle keeps their memory apart, and ends with its pipe.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fico_export.errors import FicoError, ImageWarning
from fico_export.profile.memory import DevicePeak, cuda_free_bytes, forget_host_peak, host_peak_bytes
from fico_export.profile.picture import drawn
from fico_export.profile.vision import shares
from fico_export.runtime import backends
from fico_export.runtime.inputs.tile_runs import run_tiles
from fico_export.runtime.sampling import Sampling
from fico_export.runtime.vlm import Vlm

VISION_RUNS = 5


@dataclass(frozen=True)
class Job:
    """What to run: the bundle, and the question that every answer is to.

    Args:
        bundle: its folder.
        picture: a file; None for the one drawn by code.
        prompt: asked about it.
        backend: that is to run it.
        threads: CPU threads within an operator; 0 for one per core.
        scratch: folder for files that are gone afterwards.
    """

    bundle: str
    picture: str | None
    prompt: str
    backend: str
    threads: int
    scratch: str


class Worker:
    """A bundle that is loaded and asked."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._device = DevicePeak(cuda_free_bytes() if _on_gpu(job.backend) else None)
        self._picture = Path(job.picture).read_bytes() if job.picture else drawn()
        with self._device.at_work():
            self._vlm = Vlm(job.bundle, backend=job.backend, threads=job.threads)
        self._load_peak = host_peak_bytes()
        self._forgot = forget_host_peak()

    def answer(self, new_tokens: int) -> dict[str, Any]:
        """One answer of so many tokens, whatever the model says, in a conversation of its own.

        Its wall time is taken by a clock that knows nothing of the stages'.
        """
        job = self._job
        with self._device.at_work():
            began, cpu_began = time.perf_counter(), time.process_time()
            answer = self._vlm.generate(
                job.prompt,
                [self._picture],
                max_new_tokens=new_tokens,
                sampling=Sampling(temperature=0, ignore_eos=True),
            )
            wall_ms = (time.perf_counter() - began) * 1000
            cpu_ms = (time.process_time() - cpu_began) * 1000
        return {
            "stages_ms": answer.stages_ms,
            "ttft_ms": answer.ttft_ms,
            "tpot_ms": answer.tpot_ms,
            "wall_ms": wall_ms,
            "cpu_ms": cpu_ms,
            "prompt_tokens": answer.prompt_tokens,
            "new_tokens": len(answer.token_ids),
        }

    def finish(self) -> dict[str, Any]:
        """Peaks of memory; then, when nothing is timed any more, where the vision graph's time goes."""
        peak = host_peak_bytes()
        peaks = [p for p in (peak, self._load_peak) if p is not None]
        return {
            "backend": self._vlm.backend,
            "host_peak_bytes": max(peaks, default=None),
            "host_answering_bytes": peak if self._forgot else None,
            "device_peak_bytes": self._device.bytes if backends.get(self._vlm.backend).on_gpu else None,
            "vision_parts": self._vision_parts(),
        }

    def _vision_parts(self) -> dict[str, float]:
        vlm = self._vlm
        open_timed = backends.get(vlm.backend).open_timed
        if open_timed is None:
            return {}
        pixels = vlm.preprocess(self._picture)
        feeds, profile = vlm.feeds(pixels, vlm.read_prompt(self._job.prompt)), vlm.layout.profile(pixels.size)
        graph = vlm.folder / vlm.manifest.graph(profile.graph).file
        del vlm, self._vlm  # room for a second session of the tower
        session = open_timed(graph, self._job.threads, Path(self._job.scratch) / "vision")
        for _ in range(VISION_RUNS):
            run_tiles(lambda given: session.run(None, given), profile, feeds)
        return shares(Path(session.end_profiling()))


def _on_gpu(backend: str) -> bool:
    """Whether a backend may take a GPU's memory, as far as is known before it is chosen."""
    return backend == backends.AUTO or backends.get(backend).on_gpu


def replies(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The answer to each line; an error ends them."""
    try:
        worker = Worker(Job(**json.loads(next(lines))))
        yield {}
        for line in lines:
            new_tokens = json.loads(line)
            yield worker.finish() if new_tokens is None else worker.answer(new_tokens)
    except FicoError as error:
        yield {"error": {"kind": type(error).__name__, "what": error.what, "fix": error.fix}}


def request(job: Job) -> str:
    """The first line."""
    return json.dumps(asdict(job))


def main() -> None:
    """Answer until stdin ends."""
    warnings.simplefilter("ignore", ImageWarning)  # who asked has said it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that is asked
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for reply in replies(iter(sys.stdin.readline, "")):
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
