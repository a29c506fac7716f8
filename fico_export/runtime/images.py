"""`inputs/images.py` by the path that scripts outside this repository import it by."""

from fico_export.runtime.inputs.images import ImageFeatures, load_image

__all__ = ["ImageFeatures", "load_image"]
