"""Vision-language models on small GPUs, exported to ONNX with their visual tokens already reduced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fico_export.api import export, load, verify
    from fico_export.errors import FicoError
    from fico_export.runtime.inputs.images import Video

__version__ = "0.1.0"
__all__ = ["FicoError", "Video", "__version__", "export", "load", "verify"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: a device that only runs bundles has no torch to import."""
    if name == "FicoError":
        from fico_export.errors import FicoError

        return FicoError
    if name == "Video":
        from fico_export.runtime.inputs.images import Video

        return Video
    if name in ("export", "load", "verify"):
        from fico_export import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
