"""A bundle's engines on this machine: found, checked, loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fico_export.bundle import graph_names
from fico_export.bundle.engine_check import (
    Host,
    builds_of,
    built_targets,
    rebuild,
    require_file,
    require_host,
    require_sources,
    require_tensors,
)
from fico_export.bundle.engines import Build
from fico_export.bundle.manifest import Manifest
from fico_export.devices import nvidia, targets
from fico_export.errors import BundleError, ConfigError
from fico_export.runtime.backends.base import Session
from fico_export.runtime.backends.ort.sessions import open_embedding
from fico_export.runtime.backends.trt import memory
from fico_export.runtime.backends.trt.decoder import EngineDecoder
from fico_export.runtime.backends.trt.engine import Device, Engine, cuda_graphs_wanted, host
from fico_export.runtime.backends.trt.session import EngineSession


class Engines:
    """The engines of a bundle that a backend runs.

    Args:
        folder: of the bundle.
        manifest: of it.
        backend: that runs them.
        threads: CPU threads of the lookup of embeddings; 0 for one per core.

    Raises:
        BundleError: there are none, or they do not fit this machine or the bundle.
        ConfigError: the library or cuda-bindings is missing, or the bundle is for ONNX Runtime.
        EngineError: CUDA cannot run here.
    """

    def __init__(self, folder: Path, manifest: Manifest, backend: str, threads: int) -> None:
        self._folder, self._manifest, self._threads = folder, manifest, threads
        self.build = fitting_build(folder, manifest, backend)
        self._graphs = cuda_graphs_wanted()
        self._device = Device(backend)

    def require_memory(self, steps: Sequence[Sequence[str]], *, low_memory: bool) -> None:
        """Refuse what will not fit into the GPU's memory.

        Raises:
            ConfigError: saying how much is needed, how much there is, and what needs less.
        """
        memory.require_device_memory(
            self._manifest, self.build, steps, memory.free_bytes(), low_memory=low_memory
        )

    def session(self, name: str) -> EngineSession:
        """The engine of a graph that keeps nothing.

        Raises:
            BundleError: its file is not the one that was built.
            EngineError: it cannot be loaded.
        """
        return EngineSession(self._open(name), [o.name for o in self._manifest.graph(name).outputs])

    def embedding(self) -> Session:
        """The lookup of embeddings, by ONNX Runtime on the CPU."""
        session: Session = open_embedding(self._folder, self._manifest, self._threads)
        return session

    def decoder(self) -> EngineDecoder:
        """The decoder's engines.

        Raises:
            BundleError: a file is not the one that was built.
            EngineError: one cannot be loaded.
        """
        return EngineDecoder(self._manifest, self._open, graphs=self._graphs)

    def _open(self, name: str) -> Engine:
        path = require_file(self._folder, self.build, name, full=False)
        fix = rebuild(self._folder, self.build.target)
        engine = Engine(self._device, path, fix, host_code=self.build.options.version_compatible)
        require_tensors(name, self._manifest.graph(name), engine.shapes, fix)
        memory.require_scratch(engine)
        return engine


def needed_graphs(manifest: Manifest) -> list[str]:
    """Graphs that must be engines: all but the lookup of embeddings, which stays in host memory."""
    return [name for name in manifest.graphs if name != graph_names.EMBEDDING]


def fitting_build(folder: Path, manifest: Manifest, backend: str) -> Build:
    """What a bundle's engines for a backend say of themselves, after they were found to fit.

    Raises:
        BundleError: there are none, or none fits this machine and the bundle; then why the first does not.
        ConfigError: the library or cuda-bindings is missing, or the bundle's decoder has a cache that no engine can hold.
        EngineError: CUDA cannot run here.
    """
    if manifest.cache_rows is None:
        raise ConfigError(
            f"{folder} is for target {manifest.target}, whose decoder has a cache that grows: it runs on ONNX Runtime alone",
            fix=f"export again with --target {_target_of(backend)}, then `fico build`; or give --backend ort-cuda or ort-cpu",
        )
    library = nvidia.of_backend(backend)
    builds, damaged = builds_of(folder, library.runtime)
    if not builds and damaged:
        raise damaged[0]
    if not builds:
        others = ", ".join(built_targets(folder))
        raise BundleError(
            f"{folder} has no engines of {library.name}{f', only for {others}' if others else ''}",
            fix=rebuild(folder, manifest.target if _is_of(manifest.target, backend) else _target_of(backend)),
        )
    here = host(backend)
    problems = [(build, _problem(folder, manifest, build, here)) for build in builds]
    for build, problem in problems:
        if problem is None:
            return build
    raise next(problem for _, problem in problems if problem is not None)


def require_fit(folder: Path, manifest: Manifest, build: Build, here: Host) -> None:
    """Refuse engines that do not fit a machine or the bundle; their files are looked at when they are loaded.

    Raises:
        BundleError: saying what differs.
    """
    require_host(folder, build, here)
    require_sources(folder, manifest, build, needed_graphs(manifest))


def _problem(folder: Path, manifest: Manifest, build: Build, here: Host) -> BundleError | None:
    try:
        require_fit(folder, manifest, build, here)
    except BundleError as error:
        return error
    return None


def _is_of(target: str, backend: str) -> bool:
    parser = targets.get(target).parser
    return parser is not None and nvidia.of_parser(parser.runtime).backend == backend


def _target_of(backend: str) -> str:
    """What to export for: of TensorRT, the targets that there are, for which is installed where the engines are built."""
    names = [name for name in targets.names() if _is_of(name, backend)]
    return " or ".join(sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]))
