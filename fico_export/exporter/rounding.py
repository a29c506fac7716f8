"""Weights in few bits: blocks along the input axis, symmetric, an FP16 scale each, chosen by a search.

Rounding to the nearest level is best for a given scale, so only the scale is searched: over a grid that puts the largest
weight of a block on the last level or clips it, then once more by least squares for the levels found. With signed scales
the grid holds the one of llama.cpp's Q4_0 (the largest weight on level −8, whatever its sign), and another is taken only
where the squared error falls: no block comes out worse than there.

Letters: N outputs, K inputs (K′ filled up with zeros to whole blocks), G blocks along K′.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fico_export.errors import ConfigError

Array = npt.NDArray[np.float32]

# Levels that the weight of largest magnitude is divided onto: beyond the last level it is clipped. Few, for each costs a pass
# over the weights: six gain nothing at blocks of 32, and one percent of the error at blocks of 128.
_SIGNED = (-8.0, 7.0, -8.6)
_POSITIVE = (7.0, 7.5, 8.0, 8.7)
_WORK = 1 << 16  # weights at a time: three such arrays in FP32 fit in a core's cache, and few calls are made
_LIMIT = 7 * 65504.0
_GAIN = 1e-5  # of a block's energy: what FP32 sums cannot tell apart is no gain


@dataclass(frozen=True)
class Blocks:
    """A quantised matrix: codes int8 [K′, N], scales float16 [G, N]; weight ≈ code · scale of its block."""

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16]

    def dequantized(self, inputs: int) -> torch.Tensor:
        """The matrix [N, K] in FP32 that a runtime computes with; K = `inputs`."""
        blocks, outputs = self.scales.shape
        codes = torch.from_numpy(self.codes).view(blocks, -1, outputs)
        wide = codes.to(torch.float32) * torch.from_numpy(self.scales).to(torch.float32)[:, None]
        return wide.view(-1, outputs)[:inputs].T.contiguous()


def quantize(weight: torch.Tensor, bits: int, block: int, *, signed: bool) -> Blocks:
    """Round a matrix to 4 or 8 bits.

    Args:
        weight: [N, K], of any float dtype.
        bits: 4, levels −8 … 7, or 8, levels −127 … 127.
        block: weights along K that share a scale.
        signed: whether a scale of 4 bits may be negative; of 8 bits none is.

    Raises:
        ConfigError: a value is not finite, or so large that FP16 holds no scale for it.
    """
    outputs, inputs = weight.shape
    blocks = -(-inputs // block)
    codes = np.empty((blocks, block, outputs), np.int8)
    scales = np.empty((blocks, outputs), np.float16)
    grid: Sequence[float] = (127.0,) if bits == 8 else _SIGNED if signed else _POSITIVE
    levels = (-127.0, 127.0) if bits == 8 else (-8.0, 7.0)
    width = max(1, _WORK // block)

    def slab(start: int) -> None:
        rows = weight[start : start + width].to(torch.float32)
        if inputs % block:
            rows = torch.nn.functional.pad(rows, (0, blocks * block - inputs))
        columns = rows.T.contiguous().numpy().reshape(blocks, block, -1)
        work = _Work(columns.shape[1:], levels)
        for g in range(blocks):
            part = slice(start, start + width)
            codes[g, :, part], scales[g, part] = work(columns[g], grid, positive=bits == 8 or not signed)

    in_threads(slab, range(0, outputs, width))
    return Blocks(codes.reshape(-1, outputs), scales)


def in_threads(work: Callable[[int], None], items: Sequence[int]) -> None:
    """Call `work` with each item, on every core that this process may use; NumPy leaves the interpreter free."""
    count = int(os.environ.get("OMP_NUM_THREADS") or 0) or len(os.sched_getaffinity(0))
    if count == 1 or len(items) == 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, items))


class _Work:
    """Arrays that one thread searches blocks in, of one shape [block, n]: no memory is taken in the loop."""

    def __init__(self, shape: tuple[int, ...], levels: tuple[float, float]) -> None:
        self._codes, self._products = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._low, self._high = np.float32(levels[0]), np.float32(levels[1])

    def __call__(
        self, weights: Array, grid: Sequence[float], *, positive: bool
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
        """Codes [block, n] and scales [n] of weights [block, n]."""
        high, low = weights.max(0), weights.min(0)
        largest = np.where(high > -low, high, low)
        if not np.abs(largest).max() < _LIMIT:  # NaN is not below it either
            raise ConfigError(
                "a matrix to be quantised holds NaN, infinity or values beyond what an FP16 scale reaches",
                fix="download the checkpoint again, or export with --precision fp32",
            )
        if positive:
            largest = np.abs(largest)
        energy = self._dot(weights, weights)
        best = _half(largest / np.float32(grid[0]))
        if len(grid) > 1:
            least, fitted = self._try(weights, best)
            for level in (*grid[1:], None):
                scale = _half(fitted if level is None else largest / np.float32(level))
                error, fit = self._try(weights, scale)
                better = error < least - _GAIN * energy
                best, least = np.where(better, scale, best), np.where(better, error, least)
                fitted = np.where(better, fit, fitted)
        # Where every weight rounds to nothing any scale will do, and TensorRT takes only positive ones.
        best = np.where(best == 0, np.float32(1), best)
        return self._round(weights, best).astype(np.int8), best.astype(np.float16)

    def _try(self, weights: Array, scale: Array) -> tuple[Array, Array]:
        """Squared error [n] less the energy of the weights, and the scale [n] that is best for the codes found."""
        codes = self._round(weights, scale)
        with_weights, squares = self._dot(weights, codes), self._dot(codes, codes)
        error: Array = scale * (scale * squares - np.float32(2) * with_weights)
        return error, np.divide(with_weights, np.maximum(squares, np.float32(1)), dtype=np.float32)

    def _round(self, weights: Array, scale: Array) -> Array:
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
        np.multiply(weights, inverse, out=self._codes)
        np.rint(self._codes, out=self._codes)
        return np.clip(self._codes, self._low, self._high, out=self._codes)

    def _dot(self, a: Array, b: Array) -> Array:
        """Σ a·b of each column."""
        np.multiply(a, b, out=self._products)
        result: Array = np.add.reduce(self._products, 0)
        return result


def _half(scale: Array) -> Array:
    """As FP16 will hold it."""
    return scale.astype(np.float16).astype(np.float32)
