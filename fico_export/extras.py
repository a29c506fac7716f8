"""What installs a part of this package; the one place that says so, for it changes when the package is published.

It is on no package index: what installs it, or more of it, is run in a clone of its repository.
"""

from __future__ import annotations

UPDATE = "update: in a clone of fico_export: git pull && pip install ."
"""How to get a newer version."""

# Module → the extra that brings it; any other that is missing is the exporter's, or of what the exporter needs itself.
_EXTRAS = {
    "matplotlib": "report",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "polygraphy": "rtx",
    "cuda": "rtx",
    "av": "video",
}
_EXPORT = "export"


def install(extra: str) -> str:
    """The command that installs an extra: `export`, `tensorrt`, `rtx`, `report` or `video`."""
    return f"in a clone of fico_export: pip install '.[{extra}]'"


def install_module(module: str) -> str:
    """The command that installs a module that could not be imported, by the extra that brings it."""
    return install(_EXTRAS.get(module.partition(".")[0], _EXPORT))
