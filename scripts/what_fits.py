#!/usr/bin/env python3
"""The table of docs/jetson.md: what a model takes in each precision, beside what a Jetson has. Arithmetic, nothing measured.

    python scripts/what_fits.py

Weights: INT4 is half a byte and a scale of FP16 for each block of 128. The embedding is left out, whose rows are read from the
file. Cache: FP16, --context positions. Room: what was measured to be free, else the memory without what system and desktop took
where it was measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from fico_export.devices import catalog
from fico_export.devices.catalog import Device

CONTEXT = 512
LEAST, SAFE = (
    0.7e9,
    2e9,
)  # beside weights and cache: CUDA, the runtime's libraries, activations (our guess); Edge-LLM's floor
BYTES = {"fp16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 128}


@dataclass(frozen=True)
class Model:
    """Numbers of parameters, and of the cache's values for each position."""

    name: str
    vision: int
    layers: int
    head: int
    cached: int


def llama(
    name: str, vision: int, depth: int, width: int, inner: int, kv_width: int, vocabulary: int
) -> Model:
    """A decoder of Llama's or Qwen2's shapes, without norms and biases."""
    layer = 2 * width * width + 2 * width * kv_width + 3 * width * inner
    return Model(name, vision, depth * layer, vocabulary * width, 2 * depth * kv_width)


def tower(depth: int, width: int, inner: int, patches: int, patch: int, out: int) -> int:
    """A vision tower with its projector, without norms and biases."""
    layer = 4 * width * width + 2 * width * inner
    return depth * layer + (patches + 3 * patch**2) * width + width * out + out * out


# From the checkpoints' config.json; the towers without their last layer, which LLaVA does not read.
MODELS = (
    llama("Interleave-Qwen-0.5B", tower(26, 1152, 4304, 729, 14, 896), 24, 896, 4864, 128, 152000),
    llama("LLaVA-1.5-7B", tower(23, 1024, 4096, 577, 14, 4096), 32, 4096, 11008, 4096, 32064),
    llama("LLaVA-1.5-13B", tower(23, 1024, 4096, 577, 14, 5120), 40, 5120, 13824, 5120, 32064),
)
# How `fico-export` is told: decoder, lm_head, tower.
PRECISIONS = {
    "`--precision fp16`": ("fp16", "fp16", "fp16"),
    "`--precision int4`": ("int4", "fp16", "fp16"),
    "… `--quantize-head int4 --quantize-vision int8`": ("int4", "int4", "int8"),
}


def taken(model: Model, how: tuple[str, str, str], context: int) -> float:
    """Bytes of weights and cache."""
    decoder, head, vision = (BYTES[precision] for precision in how)
    return model.layers * decoder + model.head * head + model.vision * vision + 2 * context * model.cached


def room(device: Device) -> float:
    """Bytes for a model: measured, or guessed from where it was measured."""
    nano = catalog.get("orin-nano-8gb")
    assert nano.usable_gb is not None
    return 1e9 * (device.usable_gb or device.memory_gb - (nano.memory_gb - nano.usable_gb))


def verdict(free: float, needed: float) -> str:
    """In a word."""
    if free < 0 or needed + LEAST > free:
        return "no"
    return "fits" if needed + SAFE <= free else "tight"


def table(context: int) -> list[str]:
    """The lines of the table."""
    boards = [
        d for d in catalog.load().values() if d.jetpack and d.name != "agx-orin-industrial"
    ]  # as agx-orin-64gb
    boards.sort(key=lambda d: (d.memory_gb, d.name))
    names = [f"{d.name}, {'' if d.usable_gb else '≈ '}{room(d) / 1e9:.1f}" for d in boards]
    lines = [f"| model | weights and cache, GB | {' | '.join(names)} |", f"|---|---:|{'---|' * len(names)}"]
    for model in MODELS:
        for flags, how in PRECISIONS.items():
            needed = taken(model, how, context)
            cells = [verdict(room(device), needed) for device in boards]
            lines.append(f"| {model.name} {flags} | {needed / 1e9:.1f} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--context", type=int, default=CONTEXT, help="positions of the cache")
    print("\n".join(table(parser.parse_args().context)))
