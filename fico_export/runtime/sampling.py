"""Logits to the next token.

The filters and their order are those of transformers' ``generate``: temperature, then top-k, then top-p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fico_export.errors import ConfigError, EngineError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: 0 takes the most probable token always; above 0 divides the logits.
        top_p: keep the fewest most probable tokens whose probabilities reach this sum; 1 keeps all.
        top_k: keep this many most probable tokens, and those tied with the last; 0 keeps all.
        seed: of the random numbers; None takes a fresh one.
        ignore_eos: go on after the end-of-sequence token, so that answers that are timed have one length.

    Raises:
        ConfigError: a value is outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(
                f"temperature is {self.temperature}, not a finite number from 0",
                fix="give 0 for the most probable token, or a number such as 0.7",
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p is {self.top_p}, not in (0, 1]",
                fix="give 1 to keep all tokens, or a number such as 0.9",
            )
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise ConfigError(
                f"top_k is {self.top_k}, not an int from 0",
                fix="give 0 to keep all tokens, or an int such as 50",
            )
        if self.seed is not None and (not isinstance(self.seed, int) or self.seed < 0):
            raise ConfigError(
                f"seed is {self.seed}, not an int from 0", fix="give an int from 0, or none for a fresh one"
            )


class Sampler:
    """Chooses tokens one after another; two with the same seed choose the same from the same logits."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = np.random.default_rng(sampling.seed)

    def __call__(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token id from logits [V].

        Raises:
            EngineError: the logits are not numbers to choose by.
        """
        _finite_peak(logits)
        if self.sampling.temperature == 0:
            return int(np.argmax(logits))  # the first maximum: the lowest id of a tie
        probabilities = self.probabilities(logits)
        return int(self._generator.choice(probabilities.size, p=probabilities))

    def probabilities(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The distribution that tokens are drawn from, float64 [V], zero where a filter removed the token.

        At temperature 0 it is one on the token of the argmax.

        Raises:
            EngineError: the logits are not numbers to choose by.
        """
        peak = _finite_peak(logits)
        sampling = self.sampling
        if sampling.temperature == 0:
            chosen: npt.NDArray[np.float64] = np.zeros(logits.size)
            chosen[np.argmax(logits)] = 1.0
            return chosen
        # Relative to the peak, so that a tiny temperature makes -inf of the others and not inf of the peak.
        with np.errstate(over="ignore"):
            scaled = (logits.astype(np.float64) - peak) / sampling.temperature
            scores = scaled.astype(np.float32)
        if 0 < sampling.top_k < scores.size:
            kth = np.partition(scores, -sampling.top_k)[-sampling.top_k]
            scores = np.where(scores < kth, np.float32(-np.inf), scores)
        if sampling.top_p < 1:
            ascending = np.argsort(scores, kind="stable")
            # float32 like the reference, so that a sum which is the threshold in float32 falls on its side.
            below = np.cumsum(_softmax(scores[ascending])).astype(np.float32)
            dropped = below <= np.float32(1 - sampling.top_p)
            dropped[-1] = False
            scores[ascending[dropped]] = -np.inf
        return _softmax(scores)


def _finite_peak(logits: npt.NDArray[np.float32]) -> float:
    peak = float(logits.max())  # NaN wherever it stands makes the maximum NaN
    if not math.isfinite(peak):
        raise EngineError(
            f"the largest of {logits.size} logits is {peak}: the graph overflowed or was given NaN",
            fix="export again in fp32, which has the range that fp16 lacks",
        )
    return peak


def _softmax(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    weights = np.exp(scores.astype(np.float64) - float(scores.max()))
    result: npt.NDArray[np.float64] = weights / weights.sum()
    return result
