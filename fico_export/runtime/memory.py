"""How much memory this machine can still give, and whether a bundle's graphs fit: refused before, not killed amid."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fico_export.bundle.manifest import Manifest
from fico_export.errors import ConfigError

_SLACK = 1.15  # for copies of single weights while they are packed, and what is computed
_CGROUP_V1 = Path("sys/fs/cgroup/memory")
_CGROUP_V2 = Path("sys/fs/cgroup")


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that can be taken without swapping, within the limits of this process's control groups.

    Args:
        root: where `proc` and `sys` are.

    Returns:
        Bytes; None where the system does not tell.
    """
    known = [_unused_of_machine(root), *_unused_of_groups(root)]
    return min((n for n in known if n is not None), default=None)


def require_memory(
    manifest: Manifest, steps: Sequence[Sequence[str]], backend: str, *, low_memory: bool
) -> None:
    """Refuse to load graphs whose weights will not fit into memory.

    Args:
        manifest: of the bundle.
        steps: names of the graphs that each step needs.
        backend: a name of `sessions.BACKENDS`; on a GPU, the driver says what fits.
        low_memory: whether the graphs of one step alone will be in memory together, or all.

    Raises:
        ConfigError: saying how much is needed, how much there is, and what needs less.
    """
    if backend != "ort-cpu" or (available := available_bytes()) is None:
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
        mend=f"free memory, {helps}run on a GPU, or take a machine with more memory",
    )


def loading_steps(manifest: Manifest) -> list[list[str]]:
    """Names of the graphs to load, in groups: those of one step, which are needed together."""
    names = [*manifest.graphs]
    decoder = [name for name in names if name.startswith("decoder_")]
    by_rows = ["embed_tokens"] if manifest.embedding else []
    return [decoder, *([name] for name in names if name not in (*decoder, *by_rows))]


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
    return manifest.precision == "fp16" or (manifest.precision == "int4" and not graph.startswith("decoder_"))


def _unused_of_machine(root: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    return None


def _unused_of_groups(root: Path) -> list[int]:
    """What each control group of this process, and each above it, may still take; those without a limit left out."""
    unused = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers == "":
                mount, limit, usage, cache = (
                    root / _CGROUP_V2,
                    "memory.max",
                    "memory.current",
                    "inactive_file",
                )
            elif "memory" in controllers.split(","):
                mount, limit, usage, cache = (
                    root / _CGROUP_V1,
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                )
            else:
                continue
            own = mount / place.lstrip("/")
            for group in (own, *own.parents):
                with suppress(OSError, ValueError):  # "max" is no number: no limit
                    statistics = dict(
                        entry.split() for entry in (group / "memory.stat").read_text().splitlines()
                    )
                    used = int((group / usage).read_text()) - int(statistics.get(cache, 0))
                    unused.append(max(0, int((group / limit).read_text()) - used))
                if group == mount:
                    break
    return unused
