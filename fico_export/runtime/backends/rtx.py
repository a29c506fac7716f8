"""TensorRT-RTX engines, which `fico build` makes."""

from __future__ import annotations

from fico_export.devices.nvidia import RTX
from fico_export.runtime.backends.trt import of_library

BACKEND = of_library(RTX, rank=2)
