"""Where the mass of each dropped token went, exactly: the weights A [K, n] of each application of a reducer.

What a reducer leaves is linear in the tokens once its choices are made, A @ tokens, with one A for all channels. So its
derivative along tokens that hold a probe of their own in each channel is A, a column a channel, and choices (comparisons and
indices) have none. A reducer that is not so is found out, since A @ tokens is compared with what it left.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fico_export.bundle import graph_names
from fico_export.models.source import SourceModel
from fico_export.models.vision import Reduce, VisionEncoder
from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.plan import Step
from fico_export.reducers.base.reducer import Reduction

Encoder = Callable[[str], VisionEncoder]
"""Name of a profile → its module."""

TOLERANCE = 1e-4  # of the largest value left


@dataclass(frozen=True)
class Application:
    """One application of a reducer.

    Attributes:
        name: where: `layer_3`, `encoder_output` or `projector_output`.
        method: the reducer's name.
        live: [K] raster positions of the patches left after it.
        weights: [K, n] how much of each token given went into each one left; None where the method is not linear.
        error: largest difference between what it left and weights @ tokens, as a share of the largest value left.
    """

    name: str
    method: str
    live: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64] | None
    error: float


@dataclass(frozen=True)
class Trace:
    """What torch in FP32 did to one image before the decoder.

    Attributes:
        keep_index: [K] as the vision graph gives it.
        steps: in their order.
    """

    keep_index: npt.NDArray[np.int64]
    steps: list[Application]

    def weights(self, patches: int) -> npt.NDArray[np.float64] | None:
        """[K, N] from every patch of the image to every one left, all applications multiplied.

        None where one of them is not linear. Between two applications, attention mixes what tokens hold; this follows the
        tokens.
        """
        product = np.eye(patches)
        for step in self.steps:
            if step.weights is None:
                return None
            product = step.weights @ product
        return product

    def shares(self, patches: int) -> npt.NDArray[np.float64] | None:
        """[K, N] of each patch, what part of what is left of it is where; zero for a patch of which nothing is left."""
        weights = self.weights(patches)
        if weights is None:
            return None
        held = np.abs(weights)
        total = held.sum(0)
        parts: npt.NDArray[np.float64] = np.divide(held, total, out=np.zeros_like(held), where=total > 0)
        return parts


def encoder(checkpoint: SourceModel, method: str, keep: int, options: dict[str, Any]) -> Encoder:
    """The vision graph's module of each profile, with its weights, in FP32."""
    plan = checkpoint.plan(method, keep, options)

    @cache
    def of(name: str) -> VisionEncoder:
        profile = next(profile for profile in checkpoint.profiles if profile.name == name)
        with torch.device("meta"):
            module = checkpoint.vision(checkpoint.plan_for(plan, profile), torch.float32, profile=profile)
        return checkpoint.with_weights(module)

    return of


def trace(module: VisionEncoder, feeds: Mapping[str, npt.NDArray[Any]]) -> Trace:
    """Run an image through the module and follow its tokens; those of tiles that are reduced as one are not followed.

    Args:
        module: of `encoder`, for the image's profile.
        feeds: what the vision graph takes, by input, all tiles of the image in `pixel_values`.
    """
    given = {name: torch.from_numpy(np.ascontiguousarray(rows)) for name, rows in feeds.items()}
    given = {
        name: rows.to(torch.float32) if rows.is_floating_point() else rows for name, rows in given.items()
    }
    pixels, valid = given.pop("pixel_values"), given.pop(graph_names.VALID, None)
    # Not inference_mode: its tensors take no part in derivatives.
    with torch.no_grad():
        if module.joint:
            _, index = module(pixels, *([] if valid is None else [valid]), *given.values())
            return Trace(index[0].numpy(), [])
        parts = [part for part, group in module.parts() for _ in range(group.tiles)] * module.runs
        masks = [None] * len(pixels) if valid is None else [mask[None] for mask in valid]
        rows = zip(pixels, masks, parts, strict=True)
        tiles = [_of_tile(module, tile[None], given, mask, part) for tile, mask, part in rows]
    return tiles[0] if len(tiles) == 1 else _joined(tiles, module)


def _of_tile(
    module: VisionEncoder, pixels: Tensor, text: dict[str, Tensor], valid: Tensor | None, begins: str
) -> Trace:
    """One tile, whose reducers' names begin so."""
    steps: list[Application] = []
    named = {
        part: name.removeprefix(begins) for name, part in module.reduce.items() if name.startswith(begins)
    }

    def follow(part: torch.nn.Module, given: tuple[Any, ...], left: tuple[Reduction, Cues, Any]) -> None:
        assert isinstance(part, Reduce)
        tokens, cues, *_ = given  # planes, if any, are merged by the same weights
        weights, error = application_weights(part.step, part.keep, tokens, cues, left[0])
        live = left[1].positions[0].numpy().copy()
        steps.append(Application(named[part], part.step.method, live, weights, error))

    hooks = [part.register_forward_hook(follow) for part in named]
    try:
        index = module.of_tiles(pixels, text, valid, begins).positions
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(index[0].numpy(), steps)


def _joined(tiles: list[Trace], module: VisionEncoder) -> Trace:
    """What became of each tile, as of one image: tokens numbered through, each tile's weights in a block of their own."""
    profile = module.profile
    tokens = profile.visual_tokens // profile.tiles
    index = np.concatenate([tile.keep_index + i * tokens for i, tile in enumerate(tiles)])
    found: list[Application] = []
    longest = max(tiles, key=lambda tile: len(tile.steps))  # it has every place of a tile with a larger share
    live = [np.arange(tokens - profile.aside) for _ in tiles]
    for name in [step.name for step in longest.steps]:
        there = [next((step for step in tile.steps if step.name == name), None) for tile in tiles]
        blocks = [
            np.eye(len(rows)) if step is None else step.weights
            for step, rows in zip(there, live, strict=True)
        ]
        live = [rows if step is None else step.live for step, rows in zip(there, live, strict=True)]
        known = [step for step in there if step is not None]
        weights = (
            None
            if any(block is None for block in blocks)
            else _in_blocks([b for b in blocks if b is not None])
        )
        numbered = np.concatenate([rows + i * (tokens - profile.aside) for i, rows in enumerate(live)])
        found.append(Application(name, known[0].method, numbered, weights, max(step.error for step in known)))
    return Trace(index, found)


def _in_blocks(blocks: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Matrices along the diagonal of one."""
    whole = np.zeros([sum(block.shape[axis] for block in blocks) for axis in (0, 1)])
    row = column = 0
    for block in blocks:
        whole[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return whole


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warnings of what it deprecates and uses itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def application_weights(
    step: Step, keep: int, tokens: Tensor, cues: Cues, left: Reduction
) -> tuple[npt.NDArray[np.float64] | None, float]:
    """A [K, n] of one application to tokens [1, n, C], and its error; None for A where that is over `TOLERANCE`."""
    n, channels = tokens.shape[1:]
    columns = []
    for first in range(0, n, channels):
        probes = torch.zeros_like(tokens)
        count = min(channels, n - first)
        probes[0, torch.arange(first, first + count), torch.arange(count)] = 1
        with _quietly(), forward_ad.dual_level():
            dual = forward_ad.make_dual(tokens, probes)
            moved = forward_ad.unpack_dual(step.reducer.apply(dual, cues, keep, step.options).tokens).tangent
        columns.append(torch.zeros_like(left.tokens)[..., :count] if moved is None else moved[..., :count])
    weights = torch.cat(columns, dim=-1)[0].to(torch.float64)
    expected = left.tokens[0].to(torch.float64)
    difference = (weights @ tokens[0].to(torch.float64) - expected).abs().max()
    error = float(difference / expected.abs().max().clamp_min(1e-30))
    return (weights.numpy() if error <= TOLERANCE else None), error
