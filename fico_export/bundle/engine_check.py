"""Whether engines fit: the machine that is to run them, the graphs they were built of, and their own files.

Pure functions of build.json, the manifest and files; what the machine is comes as a `Host`, so that any machine can be asked for.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fico_export.bundle import files
from fico_export.bundle.engines import FILE_NAME, FOLDER, Build, Engine
from fico_export.bundle.manifest import Graph, Manifest
from fico_export.devices import nvidia
from fico_export.devices.nvidia import Runtime
from fico_export.errors import BundleError

# Majors whose version-compatible engines a later major runs (NVIDIA's support matrix of 11.4.1).
_ACROSS_MAJORS = {(10, 11)}
_AMPERE = (8, 0)
_PROCESSORS = {"amd64": "x86_64", "arm64": "aarch64"}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Host:
    """A machine that is to run engines.

    Attributes:
        runtime: the library that runs them.
        version: of it, whole.
        platform: as `this_platform` says it.
        compute_capability: of the GPU, such as 8.7.
        gpu: its name.
    """

    runtime: Runtime
    version: str
    platform: str
    compute_capability: str
    gpu: str


def this_platform() -> str:
    """Operating system and processor of this machine, such as linux-aarch64."""
    processor = platform.machine().lower()
    return f"{platform.system().lower()}-{_PROCESSORS.get(processor, processor)}"


def built_targets(bundle: Path) -> list[str]:
    """Targets that a bundle has engines for, or what is left of them; a folder may hold trtexec's scripts alone."""
    folder = bundle / FOLDER
    places = [place for place in folder.iterdir() if place.is_dir()] if folder.is_dir() else []
    return sorted(p.name for p in places if (p / FILE_NAME).exists() or any(p.glob("*.engine")))


def builds_of(bundle: Path, runtime: Runtime) -> tuple[list[Build], list[BundleError]]:
    """What a bundle's engines of a library say of themselves, and what is wrong with any engines that cannot be read."""
    read = [_read(bundle, target) for target in built_targets(bundle)]
    found = [build for build in read if isinstance(build, Build) and build.runtime == runtime]
    return found, [error for error in read if isinstance(error, BundleError)]


def rebuild(bundle: Path, target: str) -> str:
    """The command that builds a target's engines again."""
    return f"fico build {bundle} --target {target}"


def require_host(bundle: Path, build: Build, host: Host) -> None:
    """Refuse engines that this machine cannot run.

    Raises:
        BundleError: they are of another library, version, platform or compute capability; it names both.
    """
    fix = f"build them here: {rebuild(bundle, build.target)}"
    place = f"{FOLDER}/{build.target}"
    built, here = nvidia.of_runtime(build.runtime), nvidia.of_runtime(host.runtime)
    if built != here:
        raise BundleError(
            f"the engines in {place} are {built.name}'s, and {here.name} was to run them",
            fix=f"give --backend {built.backend}, or build for a target of {here.name}",
        )
    if not _runs_version(build, host.version):
        compatible = ", version-compatible" if build.options.version_compatible else ""
        raise BundleError(
            f"the engines in {place} were built with {built.name} {build.version}{compatible}; "
            f"{host.version} is installed here",
            fix=fix,
        )
    if not _runs_platform(build, host.platform):
        raise BundleError(
            f"the engines in {place} were built on {build.platform}; this is {host.platform}", fix=fix
        )
    if not _runs_gpu(build, host.compute_capability):
        reach = {
            "none": "",
            "ampere_plus": " (and Ampere or later)",
            "same_compute_capability": " (any GPU of that)",
        }[build.options.hardware_compatibility]
        flag = (
            f" --compute-capability {host.compute_capability}" if build.runtime == nvidia.RTX.runtime else ""
        )
        raise BundleError(
            f"the engines in {place} are for compute capability {', '.join(build.compute_capabilities)}{reach}; "
            f"{host.gpu} has {host.compute_capability}",
            fix=f"{fix}{flag}",
        )


def require_sources(bundle: Path, manifest: Manifest, build: Build, graphs: Iterable[str]) -> None:
    """Refuse engines that are missing, or whose graphs are not those of the manifest any more.

    Raises:
        BundleError: naming the graph, and the file that changed.
    """
    fix = rebuild(bundle, build.target)
    for name in graphs:
        engine = build.engines.get(name)
        if engine is None:
            raise BundleError(
                f"{FOLDER}/{build.target} has no engine of {name}, only of {', '.join(sorted(build.engines)) or 'none'}",
                fix=fix,
            )
        graph = manifest.graph(name).file
        if graph not in engine.sources:
            raise BundleError(f"the engine of {name} was built of other files than {graph}", fix=fix)
        for file, sha256 in engine.sources.items():
            now = manifest.files.get(file)
            if now is None or now.sha256 != sha256:
                what = "is no longer in the bundle" if now is None else "has changed since"
                raise BundleError(
                    f"the engine of {name} was built of {file}, which {what}: the bundle was exported again, or edited",
                    fix=fix,
                )


def require_file(bundle: Path, build: Build, name: str, *, full: bool) -> Path:
    """The file of an engine, after a look at it.

    Its size is compared always. Its SHA-256 is compared where `full`, and where the file is small, as for the other files of a
    bundle: to hash a plan of 4 GB takes as long as to load it. A large one of the right size that is wrong all the same is caught
    when it is loaded: the library knows its own plans, and their tensors are compared with the graph's (`require_tensors`).

    Raises:
        BundleError: it is missing, truncated, or another file.
    """
    engine, fix = build.engines[name], rebuild(bundle, build.target)
    place = f"{FOLDER}/{build.target}/{engine.file}"
    path = bundle / place
    if not path.is_file():
        raise BundleError(f"{place} is missing", fix=fix)
    size = path.stat().st_size
    if size != engine.size:
        how = "truncated" if size < engine.size else "another file"
        raise BundleError(
            f"{place} is {how}: it has {size} bytes, build.json says {engine.size}",
            fix=f"copy it again, or {fix}",
        )
    if (full or size <= files.QUICK_LIMIT_BYTES) and files.sha256(path) != engine.sha256:
        raise BundleError(
            f"{place} is another file than the one that was built: it does not have the SHA-256 of build.json",
            fix=f"copy it again, or {fix}",
        )
    return path


def require_tensors(name: str, graph: Graph, tensors: Mapping[str, Shape], fix: str) -> None:
    """Refuse an engine that is not of its graph.

    Args:
        name: of the graph.
        graph: of the manifest.
        tensors: of the engine by name, with -1 for a free axis.
        fix: the command that builds it again.

    Raises:
        BundleError: a tensor is missing, unknown, or of another shape.
    """
    expected = graph.shapes()
    if odd := set(expected) ^ set(tensors):
        raise BundleError(
            f"the engine of {name} is of another graph: {', '.join(sorted(odd)[:3])} is in only one of them",
            fix=fix,
        )
    for tensor, shape in expected.items():
        found = tensors[tensor]
        same = len(shape) == len(found) and all(
            not isinstance(a, int) or b in (a, -1) for a, b in zip(shape, found, strict=True)
        )
        if not same:
            raise BundleError(
                f"the engine of {name} is of another graph: {tensor} is {list(found)} in it, {shape} in the manifest",
                fix=fix,
            )


def check_engines(bundle: Path, manifest: Manifest, target: str, *, full: bool) -> dict[str, Engine]:
    """Compare all engines of a target with their graphs and build.json, whatever machine they are for.

    Raises:
        BundleError: saying what differs.
    """
    build = Build.load(bundle, target)
    require_sources(bundle, manifest, build, build.engines)
    for name in build.engines:
        require_file(bundle, build, name, full=full)
    return build.engines


def _read(bundle: Path, target: str) -> Build | BundleError:
    try:
        return Build.load(bundle, target)
    except BundleError as error:
        return error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _runs_version(build: Build, version: str) -> bool:
    """An engine runs on the release that built it; a version-compatible one on later ones too, but of TensorRT-RTX none."""
    built, here = _numbers(build.version), _numbers(version)
    if built == here:
        return True
    if not build.options.version_compatible or build.runtime == nvidia.RTX.runtime:
        return False
    return (built[0] == here[0] and built < here) or (built[0], here[0]) in _ACROSS_MAJORS


def _runs_platform(build: Build, here: str) -> bool:
    """TensorRT-RTX's engines are the same for Linux and Windows; TensorRT's are not."""
    if build.runtime == nvidia.RTX.runtime:
        return build.platform.rpartition("-")[2] == here.rpartition("-")[2]
    return build.platform == here


def _runs_gpu(build: Build, capability: str) -> bool:
    if capability in build.compute_capabilities:
        return True
    ampere = (
        build.options.hardware_compatibility == "ampere_plus" and build.runtime == nvidia.TENSORRT.runtime
    )
    return ampere and _capability(capability) >= _AMPERE


def _capability(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
