"""`fico profile --logs`: what trtexec and ONNX Runtime's profiler wrote, shared out to stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fico_export.cli.console import print_json, put
from fico_export.errors import ConfigError

if TYPE_CHECKING:
    from fico_export.logs.records import Engine, Logs, Profile


def show(files: Sequence[Path], bundles: Sequence[Path], *, as_json: bool) -> None:
    """Read logs, of a bundle's engines where one is given, and print them.

    Raises:
        ConfigError: more than one bundle.
        LogError: a log is damaged, or of another engine.
    """
    from fico_export.logs.read import read_logs

    if len(bundles) > 1:
        raise ConfigError(
            f"--logs, and {len(bundles)} bundles", fix="give the one that the logs are of, or none"
        )
    logs = read_logs(files, bundles[0] if bundles else None)
    content = _described(logs)
    if as_json:
        print_json(content)
        return
    for profile in content["profiles"]:
        put(
            f"{profile['path']}: {profile['total_ms']:.3f} ms a run, mean of {profile['runs']} by {profile['tool']}"
        )
        for stage, ms in profile["stages"].items():
            put(f"  {stage:<20}{ms:>10.3f} ms{ms / profile['total_ms']:>8.1%}")
        put(
            f"  {'not attributed':<20}{profile['unattributed_ms']:>10.3f} ms{profile['unattributed_share']:>8.1%}"
        )
        if profile["mixed_ms"]:
            put(
                f"  of which {profile['mixed_ms']:.3f} ms of layers that join stages, shared out by their nodes"
            )
    used = {profile["layer_info"] for profile in content["profiles"]}
    for name, count in content["engines"].items():
        if name not in used:
            put(f"{name}: {count} layers, those of no profile that was given: it shares out nothing")
    for name, times in [*content["summaries"].items(), *content["times"].items()]:
        put(name)
        for what, spread in times.items():
            put(
                f"  {what:<20}{spread['median']:>10.3f} ms median, {spread['least']:.3f} … {spread['most']:.3f}"
            )


def _described(logs: Logs) -> dict[str, Any]:
    from fico_export.logs.records import statistics

    kinds = ("compute_ms", "latency_ms", "enqueue_ms", "h2d_ms", "d2h_ms")
    return {
        "profiles": [_attributed(profile, logs.engines) for profile in logs.profiles],
        "summaries": {
            str(s.path): {kind: asdict(getattr(s, kind)) for kind in kinds if getattr(s, kind)}
            for s in logs.summaries
        },
        "times": {
            str(t.path): {kind: asdict(statistics(getattr(t, kind))) for kind in kinds} for t in logs.times
        },
        "engines": {str(e.path): len(e.layers) for e in logs.engines},
    }


def _attributed(profile: Profile, engines: Sequence[Engine]) -> dict[str, Any]:
    """A profile by stage, with the layer info that has its layers, where it is among the logs."""
    from fico_export.logs.stages import attribute

    names = {layer.name for layer in profile.layers}
    engine = next((e for e in engines if names <= {layer.name for layer in e.layers}), None)
    found = attribute(profile, engine)
    return {
        "path": str(profile.path),
        "tool": profile.tool,
        "runs": profile.runs,
        "layer_info": str(engine.path) if engine else None,
        "total_ms": found.total_ms,
        "unattributed_share": found.unattributed_share,
        **asdict(found),
    }
