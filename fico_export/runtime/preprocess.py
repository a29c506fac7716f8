"""`inputs/preprocess.py` by the path that scripts outside this repository import it by."""

from fico_export.runtime.inputs.preprocess import ImageProcessor

__all__ = ["ImageProcessor"]
