"""Which library builds for a target, whether the one that is installed does, and for which GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fico_export.build import process
from fico_export.bundle.engine_check import this_platform
from fico_export.devices import gpu, targets
from fico_export.devices.catalog import Device
from fico_export.devices.nvidia import RTX, Runtime, of_parser
from fico_export.devices.targets import Target
from fico_export.errors import ConfigError, unknown_name

# Boards of Ampere, Ada and Blackwell: TensorRT-RTX makes one engine for all of them.
USUAL_CAPABILITIES = ("8.6", "8.9", "12.0")


@dataclass(frozen=True)
class Builder:
    """The library that builds, and what it builds for.

    Attributes:
        runtime: the library.
        version: of it, as it says itself.
        platform: operating system and processor.
        compute_capabilities: that the engines are for.
        gpu: that builds; None where there is none.
        driver: version of its driver.
    """

    runtime: Runtime
    version: str
    platform: str
    compute_capabilities: list[str]
    gpu: str | None
    driver: str | None


def choose_target(name: str | None, manifest_target: str, device: Device | None) -> Target:
    """The target to build for: what was asked for; else the bundle's own, where the device runs it; else the device's.

    Raises:
        ConfigError: it has no parser, so no engines; or it is unknown.
    """
    own = targets.get(manifest_target)
    fits = (
        device is None
        or not own.compute_capabilities
        or device.compute_capability in own.compute_capabilities
    )
    implied = own.name if device is None or (own.parser and fits) else device.target
    target = targets.get(name or implied)
    if target.parser is None:
        known = [n for n in targets.names() if targets.get(n).parser is not None]
        raise ConfigError(
            f"there are no engines for target {target.name}: ONNX Runtime runs its graphs as they are",
            fix=f"--target one of: {', '.join(known)}",
        )
    return target


def runtime_of(target: Target) -> Runtime:
    """The library that builds for a target."""
    return of_parser(target.parser.runtime if target.parser else "tensorrt").runtime


def find(target: Target, device: Device | None, capabilities: list[str]) -> Builder:
    """The library of this machine that builds for a target.

    Args:
        target: what to build for.
        device: that the engines are for, if it is known.
        capabilities: that were asked for; TensorRT builds for the GPU of this machine alone.

    Raises:
        ConfigError: it is missing, of another version, has no GPU or another, or does not build for what was asked.
    """
    runtime = runtime_of(target)
    here = gpu.find()
    if runtime == RTX.runtime:
        wanted = _of_rtx(target, device, capabilities, here)
        version = _version(target, runtime)
    else:
        if capabilities:
            raise ConfigError(
                "TensorRT builds for the GPU of this machine, not for a compute capability",
                fix="drop --compute-capability, or take --target rtx",
            )
        version = _version(target, runtime)
        _require_version(target, version)
        wanted = [_of_this_gpu(target, device, here)]
    _require_version(target, version)
    return Builder(
        runtime, version, this_platform(), wanted, here.name if here else None, here.driver if here else None
    )


def _version(target: Target, runtime: Runtime) -> str:
    try:
        return process.version(runtime)
    except ConfigError as error:
        raise ConfigError(f"target {target.name}: {error.what}", fix=error.fix) from error


def _require_version(target: Target, version: str) -> None:
    """A target of TensorRT is named after the versions that it stands for: trt-10.3 for 10.3.x, trt-11 for 11.x."""
    assert target.parser is not None
    name = of_parser(target.parser.runtime).name
    if target.parser.runtime == RTX.parser:
        if _numbers(version) < _numbers(target.parser.version):
            raise ConfigError(
                f"target {target.name} needs {name} {target.parser.version} or later; {version} is installed",
                fix=f"pip install --upgrade {RTX.wheel}",
            )
        return
    covered = _numbers(target.name.removeprefix("trt-"))
    if _numbers(version)[: len(covered)] == covered:
        return
    of_here = [n for n in targets.names() if n.startswith("trt-") and _covers(n, version)]
    jetpack = f", which JetPack {' and '.join(target.jetpack)} bring," if target.jetpack else ""
    here = f"--target {of_here[0]} for engines of this machine, or " if of_here else ""
    raise ConfigError(
        f"target {target.name} is for {name} {target.name.removeprefix('trt-')}{jetpack} and this machine has {version}: "
        "an engine runs on the version that built it",
        fix=f"{here}run this on a machine of the target; --emit-trtexec writes scripts for it",
    )


def _covers(name: str, version: str) -> bool:
    covered = _numbers(name.removeprefix("trt-"))
    return _numbers(version)[: len(covered)] == covered


def _of_this_gpu(target: Target, device: Device | None, here: gpu.Gpu | None) -> str:
    if here is None:
        raise ConfigError(
            f"TensorRT builds an engine on the GPU that will run it, and this machine has none (target {target.name})",
            fix="run this on the target's machine; --emit-trtexec writes scripts for it; --target rtx needs no GPU",
        )
    if device is not None and device.compute_capability != here.compute_capability:
        raise ConfigError(
            f"{device.name} has compute capability {device.compute_capability}, this machine's {here.name} has "
            f"{here.compute_capability}: TensorRT builds an engine on the GPU that will run it",
            fix="run this on the device, or drop --device",
        )
    return here.compute_capability


def _of_rtx(
    target: Target, device: Device | None, capabilities: list[str], here: gpu.Gpu | None
) -> list[str]:
    offered = target.compute_capabilities
    for capability in capabilities:
        if not re.fullmatch(r"\d+\.\d", capability):
            raise ConfigError(
                f"{capability!r} is no compute capability", fix="--compute-capability 8.6, for one"
            )
        if capability not in offered:
            hint = (
                "" if capability not in ("8.7", "11.0") else "a Jetson builds its own, with --target trt-…; "
            )
            error = unknown_name("compute capability", capability, offered)
            raise ConfigError(f"{target.name}: {error.what}", fix=f"{hint}known: {', '.join(offered)}")
    if capabilities:
        return list(dict.fromkeys(capabilities))
    if device is not None:
        if device.compute_capability not in offered:
            raise ConfigError(
                f"target {target.name} builds for compute capability {', '.join(offered)}; {device.name} has "
                f"{device.compute_capability}",
                fix=f"--target {device.target}",
            )
        return [device.compute_capability]
    if here is not None and here.compute_capability in offered:
        return [here.compute_capability]
    return list(USUAL_CAPABILITIES)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version))
