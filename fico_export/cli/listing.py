"""`fico list`: what is known."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fico_export.cli.console import print_json
from fico_export.cli.options import DebugOption, JsonOption
from fico_export.errors import unknown_name


def command(
    kind: Annotated[str, typer.Argument(metavar="models|methods|targets|backends", help="What to list.")],
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="With sites, stages and options.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List models, methods, targets or backends."""
    kinds = {
        "models": _models,
        "methods": _verbose_methods if verbose else _methods,
        "targets": _targets,
        "backends": _backends,
    }
    if kind not in kinds:
        raise unknown_name("kind", kind, kinds)
    entries = kinds[kind]()
    if as_json:
        print_json({kind: entries})
        return
    for name, details in entries.items():
        print(f"{name:<14} {details.pop('summary', '')}")
        for key, value in details.items():
            if isinstance(value, dict):
                for option, text in value.items():
                    print(f"{'':<14}   --set {option}=…  {text}")
            elif value not in ("–", ""):
                print(f"{'':<14}   {key}: {value}")


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
    from fico_export import reducers

    listed = _methods()
    for name, entry in listed.items():
        reducer = reducers.get(name)
        entry |= {
            "site": reducer.site.value,
            "filter": reducer.filter,
            "correlate": reducer.correlate,
            "compress": reducer.compress,
            "cues": ", ".join(sorted(reducer.cues)),
            "source": reducer.source,
            "positions": reducer.positions,
            "options": {
                option: f"{field.description}; default {field.default}"
                for option, field in reducer.options.model_fields.items()
            },
        }
    return listed


def _targets() -> dict[str, dict[str, Any]]:
    from fico_export.devices import targets

    return {name: {"summary": targets.get(name).description} for name in targets.names()}


def _backends() -> dict[str, dict[str, Any]]:
    return {
        "ort-cpu": {"summary": "ONNX Runtime on the CPU"},
        "ort-cuda": {"summary": "ONNX Runtime on an NVIDIA GPU"},
    }
