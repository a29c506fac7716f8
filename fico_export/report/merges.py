"""Where the mass of each dropped token went, exactly: the weights A [K, n] of each application of a reducer.

What a reducer leaves is linear in the tokens once its choices are made, A @ tokens, with one A for all channels. So its
derivative along tokens that hold a probe of their own in each channel is A, a column a channel, and choices (comparisons and
indices) have none. A reducer that is not so is found out, since A @ tokens is compared with what it left.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fico_export.models.source import SourceModel
from fico_export.models.vision import Reduce, VisionEncoder, extra_inputs
from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.plan import Step
from fico_export.reducers.base.reducer import Reduction

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


def encoder(checkpoint: SourceModel, method: str, keep: int, options: dict[str, Any]) -> VisionEncoder:
    """The vision graph's module with its weights, in FP32."""
    plan = checkpoint.plan(method, keep, options)
    with torch.device("meta"):
        module = checkpoint.vision(plan, torch.float32)
    module.extra_inputs = extra_inputs(plan)
    return checkpoint.with_weights(module)


def trace(
    module: VisionEncoder, pixels: npt.NDArray[np.float32], text: Mapping[str, npt.NDArray[Any]]
) -> Trace:
    """Run an image through the module and follow its tokens.

    Args:
        module: of `encoder`.
        pixels: [1, 3, S, S].
        text: what the vision graph reads of the prompt, by input.
    """
    steps: list[Application] = []
    named = {part: name for name, part in module.reduce.items()}

    def follow(part: torch.nn.Module, given: tuple[Tensor, Cues], left: tuple[Reduction, Cues]) -> None:
        assert isinstance(part, Reduce)
        weights, error = application_weights(part.step, part.keep, *given, left[0])
        live = left[1].positions[0].numpy().copy()
        steps.append(Application(named[part], part.step.method, live, weights, error))

    hooks = [part.register_forward_hook(follow) for part in named]
    try:
        # Not inference_mode: its tensors take no part in derivatives.
        with torch.no_grad():
            rows = [torch.from_numpy(np.ascontiguousarray(text[name])) for name in module.extra_inputs]
            rows = [row.to(torch.float32) if row.is_floating_point() else row for row in rows]
            _, index = module(torch.from_numpy(pixels), *rows)
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(index[0].numpy(), steps)


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
