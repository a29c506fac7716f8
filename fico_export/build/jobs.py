"""Which graphs of a bundle become engines, of what files, and how long their free axes may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fico_export.bundle import graph_names
from fico_export.bundle.engines import Sizes
from fico_export.bundle.external import external_files
from fico_export.bundle.manifest import Graph, Manifest
from fico_export.errors import BundleError, ConfigError, unknown_name

SEQUENCE = "sequence_length"
_BATCH = "batch_size"
# Positions that a prompt is handed over in: the runtime's own pieces are as long. Where a cache is shorter, all of it, which is 65 at
# least, for an export refuses fewer rows than an image and 64 words. TensorRT-RTX 1.7 cannot build an FP16 decoder of the form
# `in-place` whose longest piece is 2 to 64 positions and whose cache has 1024 rows or more (Myelin: "Error while verifying IR", at an iota).
_PREFILL = 512
_PROMPT = 64  # words about an image, to guess the likeliest length of a prompt by
# StringStringEntryProto of TensorProto.external_data: key (field 1) `location`, then value (field 2) and its length.


@dataclass(frozen=True)
class Job:
    """A graph to make an engine of.

    Attributes:
        name: of the graph in the manifest.
        graph: as the manifest has it.
        sources: files of the bundle that hold the graph and its weights, with the SHA-256 that the manifest gives.
        profiles: for each optimisation profile the sizes of each free axis; one without any for a static graph.
    """

    name: str
    graph: Graph
    sources: dict[str, str]
    profiles: list[dict[str, Sizes]]


def plan(bundle: Path, manifest: Manifest, graphs: Sequence[str] = (), *, profiles: int = 1) -> list[Job]:
    """What is to be built of a bundle.

    Args:
        bundle: its folder.
        manifest: its manifest.
        graphs: names of those wanted; by default all but an embedding graph whose table the runtime reads itself.
        profiles: 1 for one that is wide, 2 for one of a single position and one of prompts.

    Raises:
        BundleError: a file of a graph is not in the manifest.
        ConfigError: a graph is unknown, or no engine can be made of it.
    """
    for name in graphs:
        if name not in manifest.graphs:
            raise unknown_name("graph", name, manifest.graphs)
    chosen = [name for name in manifest.graphs if name in graphs] if graphs else wanted(manifest)
    rows = manifest.cache_rows
    for name in chosen:
        _require_static_cache(bundle, manifest, name)
    return [
        Job(
            name,
            manifest.graph(name),
            _sources(bundle, manifest, name),
            _profiles(manifest, name, rows, profiles),
        )
        for name in chosen
    ]


def wanted(manifest: Manifest) -> list[str]:
    """The graphs that a runtime needs engines of: it reads the rows of an embedding table by itself."""
    spared = {graph_names.EMBEDDING} if manifest.embedding is not None else set()
    return [name for name in manifest.graphs if name not in spared]


def weight_files(graph: Path) -> set[str]:
    """The files beside a graph that hold its weights, read off the names in it."""
    return external_files(graph)


def _sources(bundle: Path, manifest: Manifest, name: str) -> dict[str, str]:
    graph = Path(manifest.graph(name).file)
    weights = sorted((graph.parent / file).as_posix() for file in weight_files(bundle / graph))
    sources = {}
    for file in (graph.as_posix(), *weights):
        if file not in manifest.files:
            raise BundleError(
                f"{file}, of the graph {name!r}, is not in the manifest of {bundle}",
                fix="export the bundle again",
            )
        sources[file] = manifest.files[file].sha256
    return sources


def _require_static_cache(bundle: Path, manifest: Manifest, name: str) -> None:
    graph = manifest.graphs[name]
    shapes = graph.shapes()
    for past in graph.past:
        if isinstance(shapes[past][2], str):
            others = [other for other in wanted(manifest) if other not in graph_names.DECODERS]
            alone = f", or build the rest: --graph {' --graph '.join(others)}" if others else ""
            raise ConfigError(
                f"{name} of {bundle} has a cache that grows (target {manifest.target}); an engine needs a static one",
                fix=f"export it again with --target trt-10.3, trt-11 or rtx (`fico list targets`){alone}",
            )


def _profiles(manifest: Manifest, name: str, rows: int | None, count: int) -> list[dict[str, Sizes]]:
    free = {d for value in manifest.graphs[name].inputs for d in value.shape if isinstance(d, str)}
    if unknown := free - {SEQUENCE, _BATCH}:
        raise ConfigError(
            f"{name} has free axes that no range is known for: {', '.join(sorted(unknown))}",
            fix="export the bundle again with a --target of engines (`fico list targets`)",
        )
    fixed = {_BATCH: (1, 1, 1)} if _BATCH in free else {}
    if SEQUENCE not in free:
        return [fixed]
    most = min(rows or manifest.decoder.context, manifest.decoder.context)
    if name == graph_names.PREFILL:
        least = (
            manifest.reduction.handed_over + 2
        )  # a reducing prefill has an image and a word on either side of it
        if most < least:
            raise ConfigError(
                f"an image of {least - 2} visual tokens does not fit the {most} rows of the cache of {manifest.name}",
                fix=f"export again with --max-context of {least + _PROMPT} or more",
            )
        return [{**fixed, SEQUENCE: (least, min(least + _PROMPT, most), most)}]
    longest = min(_PREFILL, most)
    if count == 1:
        return [{**fixed, SEQUENCE: (1, 1, longest)}]
    return [{**fixed, SEQUENCE: (1, 1, 1)}, {**fixed, SEQUENCE: (1, longest, longest)}]
