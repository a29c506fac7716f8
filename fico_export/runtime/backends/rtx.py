"""TensorRT-RTX engines."""

from __future__ import annotations

from fico_export.runtime.backends.trt import of_library

BACKEND = of_library("rtx", "tensorrt_rtx", "TensorRT-RTX engines, which `fico build` makes", rank=2)
