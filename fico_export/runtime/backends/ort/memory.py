"""Whether a bundle's graphs fit into memory: refused before, not killed amid."""

from __future__ import annotations

from collections.abc import Sequence

from fico_export.bundle import graph_names
from fico_export.bundle.manifest import Manifest
from fico_export.devices.memory import available_bytes
from fico_export.errors import ConfigError

_SLACK = 1.15  # for copies of single weights while they are packed, and what is computed


def require_host_memory(manifest: Manifest, steps: Sequence[Sequence[str]], *, low_memory: bool) -> None:
    """Refuse to load graphs whose weights will not fit into memory.

    Args:
        manifest: of the bundle.
        steps: names of the graphs that each step needs.
        low_memory: whether the graphs of one step alone will be in memory together, or all.

    Raises:
        ConfigError: saying how much is needed, how much there is, and what needs less.
    """
    if (available := available_bytes()) is None:
        return
    largest = max(needed_bytes(manifest, step) for step in steps)
    needed = largest if low_memory else needed_bytes(manifest, [name for step in steps for name in step])
    if needed <= available:
        return
    fp16 = any(_is_fp16(manifest, name) for step in steps for name in step)
    why = " (ONNX Runtime widens FP16 weights to FP32 on a CPU)" if fp16 else ""
    helps = "give --low-memory to load one graph at a time, " if largest <= available else ""
    raise ConfigError(
        f"{manifest.name} needs {needed / 1e9:.1f} GB of memory on ort-cpu{why}, {available / 1e9:.1f} GB are free",
        fix=f"free memory, {helps}run on a GPU, or take a machine with more memory",
    )


def needed_bytes(manifest: Manifest, graphs: Sequence[str]) -> int:
    """Memory that ONNX Runtime takes at most on a CPU while it loads graphs one after another, and then holds them all.

    A loaded graph has its weights in FP32, packed for its products, whatever they were stored in. While it loads FP16, both
    are there. Measured: 8.1 GB for 2.7 GB of FP16 in two graphs, 7.1 for the larger one of 2.1.
    """
    stored = {name: manifest.graph(name).weight_bytes for name in graphs}
    fp16 = [size for name, size in stored.items() if _is_fp16(manifest, name)]
    return int(_SLACK * (sum(stored.values()) + sum(fp16) + max(fp16, default=0)))


def _is_fp16(manifest: Manifest, graph: str) -> bool:
    """Whether a graph's weights are: of an INT4 bundle, all but the decoder's."""
    return manifest.precision == "fp16" or (
        manifest.precision == "int4" and graph not in graph_names.DECODERS
    )
