"""`fico list`: what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fico_export.cli.console import print_json, put
from fico_export.cli.options import DebugOption, DevicesOption, JsonOption
from fico_export.errors import unknown_name

_KINDS = ("models", "methods", "targets", "devices", "backends")


def _kinds(incomplete: str) -> list[str]:
    return [kind for kind in _KINDS if kind.startswith(incomplete)]


def command(
    kind: Annotated[
        str,
        typer.Argument(metavar="|".join(_KINDS), help="Kind of thing to list.", autocompletion=_kinds),
    ],
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show all that is known of each entry.")
    ] = False,
    devices: DevicesOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List models, methods, targets, devices or backends."""
    kinds: dict[str, Callable[[], dict[str, dict[str, Any]]]] = {
        "models": _models,
        "methods": _verbose_methods if verbose else _methods,
        "targets": _verbose_targets if verbose else _targets,
        "devices": partial(_verbose_devices if verbose else _devices, devices),
        "backends": _backends,
    }
    if kind not in kinds:
        raise unknown_name("kind", kind, kinds)
    entries = kinds[kind]()
    if as_json:
        print_json({kind: entries})
        return
    for name, details in entries.items():
        put(f"{name:<19} {details.pop('summary', '')}")
        for line in _device_lines(details) if "evidence" in details else _lines(details):
            put(f"{'':<22}{line}")


def _lines(details: dict[str, Any]) -> Iterator[str]:
    """What is known of an entry, a line each; what is empty is left out."""
    options: dict[str, dict[str, str]] = details.pop("options", {})
    published: dict[str, Any] | None = details.pop("published", None)
    for key, value in details.items():
        text = ", ".join(value) if isinstance(value, list) else value
        if text not in ("–", "", False):
            says = "refused" if text is None else "yes" if text is True else text
            yield f"{key.replace('_', ' ').replace('cls', 'CLS')}: {says}"
    if published:
        figures = ", ".join(f"{percent} % at K={k}" for k, percent in published["accuracy"].items())
        yield f"published: {figures}; {published['protocol']}"
    for name, option in options.items():
        yield f"--set {name}=…  {option.pop('text')}"


def _models() -> dict[str, dict[str, Any]]:
    from fico_export import models

    known = {
        models.DEMO: {
            "summary": "3.1 M parameters, comes with this package: answers questions about drawn scenes"
        }
    }
    return known | {alias: {"summary": hub_id} for alias, hub_id in sorted(models.aliases().items())}


def _methods() -> dict[str, dict[str, Any]]:
    from fico_export import reducers

    return {name: {"summary": summary} for name, summary in reducers.summaries().items()}


def _verbose_methods() -> dict[str, dict[str, Any]]:
    return {name: entry | describe_method(name) for name, entry in _methods().items()}


def describe_method(name: str) -> dict[str, Any]:
    """All that a method's record says, as data; of a composite, of its parts in turn."""
    from fico_export import reducers
    from fico_export.reducers.base.options import describe
    from fico_export.reducers.base.reducer import Composite

    record = reducers.get(name)
    names = record.parts if isinstance(record, Composite) else (name,)
    parts = [reducers.get(part) for part in names]

    def each(attribute: str) -> str:
        return " → ".join(dict.fromkeys(getattr(part, attribute) for part in parts))

    needs_cls = any(part.without_cls is None for part in parts)
    return {
        "parts": list(names) if len(names) > 1 else [],
        "site": " → ".join(part.site.value for part in parts),
        "filter": each("filter"),
        "correlate": each("correlate"),
        "compress": each("compress"),
        "cues": sorted(set().union(*(part.cues for part in parts))),
        "without_cls": None if needs_cls else each("without_cls"),
        "whole_grid": any(part.whole_grid for part in parts),
        "before_attention": any(part.before_attention for part in parts),
        "positions": "original" if any(part.positions == "original" for part in parts) else "compact",
        "source": record.source,
        "published": asdict(record.published) if record.published else None,
        "options": {o.name: asdict(o) | {"text": str(o)} for o in describe(record.options)},
    }


def _targets() -> dict[str, dict[str, Any]]:
    from fico_export.devices import targets

    return {name: {"summary": targets.get(name).description} for name in targets.names()}


def _verbose_targets() -> dict[str, dict[str, Any]]:
    from fico_export.devices import nvidia, targets

    def describe(target: targets.Target) -> dict[str, Any]:
        parser = target.parser
        return {
            "summary": target.description,
            "parser": f"{nvidia.of_parser(parser.runtime).name} {parser.version}" if parser else "",
            "jetpack": target.jetpack,
            "decoder": target.decoder,
            "opset": f"{target.opset}, IR {target.ir_version}",
            "precisions": target.precisions,
            "compute_capabilities": target.compute_capabilities,
            "operators": sorted(target.operators),
            "refuses": [f"{', '.join(rule.operators)} {rule.says}" for rule in target.rules],
        }

    return {name: describe(targets.get(name)) for name in targets.names()}


def _devices(folder: Path | None) -> dict[str, dict[str, Any]]:
    from fico_export.devices import catalog

    return {
        name: {
            "summary": f"{device.description}; {device.memory_gb:g} GB, compute capability {device.compute_capability}"
        }
        for name, device in catalog.load(folder).items()
    }


def _verbose_devices(folder: Path | None) -> dict[str, dict[str, Any]]:
    """Figures with their units, each followed by its evidence; `--json` has the numbers in the names of their units."""
    from fico_export.devices import catalog

    return {
        name: {
            "summary": device.description,
            **device.model_dump(exclude={"name", "description"}, exclude_none=True),
        }
        for name, device in catalog.load(folder).items()
    }


def _device_lines(details: dict[str, Any]) -> Iterator[str]:
    """The figures of a device, a line each with its evidence."""
    evidence: dict[str, str] = details.pop("evidence")
    modes: list[dict[str, Any]] = details.pop("modes")
    for key, value in details.items():
        if value:
            source = f"  [{evidence[key]}]" if key in evidence else ""
            yield f"{key.replace('_', ' ')}: {_figures(value)}{source}"
    for mode in modes:
        yield f"mode {mode.pop('name')}: {_figures(mode)}  [{evidence['modes']}]"


def _figures(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{name.replace('_', ' ')} {_figures(figure)}" for name, figure in value.items() if figure
        )
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _backends() -> dict[str, dict[str, Any]]:
    from fico_export.runtime import backends

    return {name: {"summary": backends.get(name).summary} for name in backends.names()}
