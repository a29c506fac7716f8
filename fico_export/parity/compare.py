"""Rows of numbers held against a reference, each precision to its own limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fico_export.parity.report import Check, Report

# Errors are held to this share of the largest reference value. FP32: the same arithmetic in another order. FP16: its 10-bit
# mantissa over dozens of layers; which tokens are kept may then differ where scores nearly tie. INT4: as FP16, against the
# weights as rounded; but ONNX Runtime rounds activations to 8 bits besides, in MatMulNBits and in what it makes of a
# DequantizeLinear, which costs a half percent of a layer's output (measured): more scores tie.
MAX_ERROR = {"fp32": 1e-3, "fp16": None, "int4": None}
COSINE = {"fp32": 0.99999, "fp16": 0.99, "int4": 0.99}
# A row can differ much in FP16 without a fault: a token merged into the other of two targets that nearly tie.
MIN_ROW_COSINE = {"fp32": 0.9999, "fp16": None, "int4": None}
INDEX_AGREEMENT = {"fp32": 1.0, "fp16": 0.95, "int4": 0.9}


def compare(
    report: Report, graph: str, pairs: Sequence[tuple[npt.NDArray[Any], npt.NDArray[np.float32]]]
) -> None:
    """The worst over pairs of (computed, expected) rows [R, C]: error, cosine of the whole, cosine of a row."""
    errors, cosines, rows = [], [], []
    scale = max(float(np.abs(e).max(where=np.isfinite(e), initial=0.0)) for _, e in pairs)
    for got, expected in pairs:
        wide = got.astype(np.float32)
        with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which passes nothing
            errors.append(np.abs(wide - expected).max())
        cosines.append(cosine(wide.reshape(1, -1), expected.reshape(1, -1)))
        rows.append(cosine(wide, expected))
    precision = report.precision
    tolerance = MAX_ERROR[precision]
    ceiling = None if tolerance is None else tolerance * scale
    report.checks += [
        Check(graph, "max abs error", float(np.max(errors)), ceiling, False),
        Check(graph, "cosine", float(np.min(cosines)), COSINE[precision], True),
        # np's: max and min of Python lose a NaN that is not the first
        Check(graph, "smallest cosine of a row", float(np.min(rows)), MIN_ROW_COSINE[precision], True),
    ]


def cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Smallest cosine between rows of a and b [R, C]."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide_a, axis=-1) * np.linalg.norm(wide_b, axis=-1)
    with np.errstate(invalid="ignore"):
        return float(((wide_a * wide_b).sum(-1) / np.maximum(norms, 1e-30)).min())
