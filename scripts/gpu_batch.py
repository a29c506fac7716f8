#!/usr/bin/env python3
"""Time a batch of four images in the vision graphs of bundles against four runs of one image: one JSON object.

    python scripts/gpu_batch.py engines/all engines/k64 --backend ort-cuda

A graph whose batch is fixed at one says so instead of a number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fico_export.bundle.manifest import Manifest

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--backend", choices=sorted(PROVIDERS), default="ort-cuda")
    parser.add_argument("--batch", type=int, default=4, help="images in a run (default 4)")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each (default 10)")
    arguments = parser.parse_args()
    measured = [
        measure(b, PROVIDERS[arguments.backend], arguments.batch, arguments.repeats)
        for b in arguments.bundles
    ]
    print(json.dumps({"batch": arguments.batch, "backend": arguments.backend, "bundles": measured}))


def measure(bundle: Path, provider: str, batch: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of a batch and of as many single runs, in alternation."""
    manifest = Manifest.load(bundle)
    graph = manifest.graph(manifest.profile.graph)
    result: dict[str, Any] = {"bundle": str(bundle), "keep": manifest.reduction.keep}
    free = graph.shapes()["pixel_values"][0]
    if free != batch and isinstance(free, int):
        return result | {"why_not": f"the vision graph takes {free} image a run"}
    session = ort.InferenceSession(str(bundle / graph.file), providers=[provider])
    if provider not in session.get_providers():
        return result | {"why_not": f"ONNX Runtime could not start {provider}"}
    shape = (batch, *manifest.profile.input_shape[1:])
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    together, apart = [], []
    for _ in range(repeats + 1):
        together.append(timed(session, [pixels]))
        if not isinstance(free, int):
            apart.append(timed(session, [pixels[i : i + 1] for i in range(batch)]))
    result["together_ms"] = statistics.median(together[1:])
    return result | ({"apart_ms": statistics.median(apart[1:])} if apart else {})


def timed(session: ort.InferenceSession, inputs: list[np.ndarray[Any, Any]]) -> float:
    """Milliseconds of a run for each input."""
    start = time.perf_counter()
    for pixels in inputs:
        session.run(None, {"pixel_values": pixels})
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
