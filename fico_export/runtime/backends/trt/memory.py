"""Whether engines and a cache fit the GPU's memory: refused before they are loaded."""

from __future__ import annotations

from collections.abc import Sequence

from fico_export.bundle.engines import Build
from fico_export.bundle.manifest import Manifest
from fico_export.devices.memory import available_bytes
from fico_export.errors import ConfigError, EngineError
from fico_export.runtime.backends.trt import cuda
from fico_export.runtime.backends.trt.decoder import cache_layout
from fico_export.runtime.backends.trt.engine import Engine


def free_bytes() -> int:
    """Memory that the GPU can give.

    A board's GPU has the machine's own: there CUDA counts what is unused, and the system also gives what holds files it can read
    again.

    Raises:
        EngineError: CUDA cannot tell.
    """
    free, shared = cuda.free_bytes()
    return max(free, available_bytes() or 0) if shared else free


def needed_bytes(
    manifest: Manifest, build: Build, steps: Sequence[Sequence[str]], *, low_memory: bool
) -> int:
    """Memory that engines and one conversation take at least: their plans, nearly all weights, and the cache.

    Args:
        manifest: of the bundle.
        build: of its engines.
        steps: names of the graphs that each step needs.
        low_memory: whether the engines of one step alone will be loaded together, or all.
    """
    sizes = [sum(build.engines[name].size for name in step if name in build.engines) for step in steps]
    # The cache stays between the turns of a conversation, whatever is loaded.
    return (max(sizes) if low_memory else sum(sizes)) + cache_layout(manifest).size


def require_device_memory(
    manifest: Manifest, build: Build, steps: Sequence[Sequence[str]], free: int, *, low_memory: bool
) -> None:
    """Refuse engines whose plans and cache will not fit.

    Raises:
        ConfigError: saying how much is needed, how much there is, and what needs less.
    """
    needed = needed_bytes(manifest, build, steps, low_memory=low_memory)
    if needed <= free:
        return
    helps = needed_bytes(manifest, build, steps, low_memory=True) <= free
    raise ConfigError(
        f"the engines of {manifest.name} and their cache need {needed / 1e9:.1f} GB of the GPU's memory, "
        f"{cache_layout(manifest).size / 1e9:.1f} of them for the cache; {free / 1e9:.1f} GB are free",
        fix=f"free memory, {'give --low-memory to load one engine at a time, ' if helps else ''}"
        "or export with a smaller --max-context or --precision int4, and build again",
    )


def require_scratch(engine: Engine) -> None:
    """Refuse to run a loaded engine that has no room to compute in.

    Raises:
        EngineError: saying how much is needed, and how much there is.
    """
    if engine.scratch_bytes > (free := free_bytes()):
        raise EngineError(
            f"the engine {engine.name} needs {engine.scratch_bytes / 1e9:.2f} GB to compute in; {free / 1e9:.2f} GB "
            "of the GPU's memory are free",
            fix="free memory, give --low-memory, or build with a smaller --workspace",
        )
