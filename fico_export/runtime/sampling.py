"""Logits to the next token, as transformers' ``generate`` chooses it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fico_export.bundle.generation_config import GenerationConfig
from fico_export.errors import ConfigError, EngineError
from fico_export.runtime import logits as rules


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. A field that is None is the bundle's: what its generation_config.json says.

    Args:
        temperature: 0 takes the most probable token always; above 0 divides the logits, and tokens are drawn.
        top_p: keep the fewest most probable tokens whose probabilities reach this sum; 1 keeps all.
        top_k: keep this many most probable tokens, and those tied with the last; 0 keeps all.
        seed: random seed for sampling; None takes a fresh one.
        ignore_eos: go on after the end-of-sequence token, so that answers that are timed have one length.
        min_p: keep tokens at least this share as probable as the most probable one; 0 keeps all.
        repetition_penalty: above 1 makes tokens less likely that the prompt or the answer has; 1 leaves them.

    Raises:
        ConfigError: a value is outside its range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    ignore_eos: bool = False
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        for name, value, good, expected, fix in (
            ("temperature", self.temperature, lambda t: t >= 0, "a finite number from 0",
             "give 0 for the most probable token, or a number such as 0.7"),
            ("top_p", self.top_p, lambda p: 0 < p <= 1, "in (0, 1]", "give 1 to keep all tokens, or a number such as 0.9"),
            ("top_k", self.top_k, lambda k: isinstance(k, int) and k >= 0, "an int from 0",
             "give 0 to keep all tokens, or an int such as 50"),
            ("seed", self.seed, lambda s: isinstance(s, int) and s >= 0, "an int from 0",
             "give an int from 0, or none for a fresh one"),
            ("min_p", self.min_p, lambda p: 0 <= p <= 1, "in [0, 1]", "give 0 to keep all tokens, or a number such as 0.05"),
            ("repetition_penalty", self.repetition_penalty, lambda p: p > 0, "a finite number above 0",
             "give 1 for no penalty, or a number such as 1.1"),
        ):  # fmt: skip
            if value is not None and not (math.isfinite(value) and good(value)):
                raise ConfigError(f"{name} is {value}, not {expected}", fix=fix)

    def over(self, config: GenerationConfig) -> GenerationConfig:
        """A generation config with the fields that are given here in the place of its own.

        Raises:
            ConfigError: a field shapes a distribution that no token would be drawn from.
        """
        shapes = {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        given = {name: value for name, value in shapes.items() if value is not None}
        changes: dict[str, object] = dict(given)
        if self.temperature is not None:
            changes |= {"temperature": self.temperature, "do_sample": self.temperature > 0}
        elif not config.samples:
            for name, value in given.items():
                if value != {"top_p": 1, "top_k": 0, "min_p": 0}[name]:
                    raise ConfigError(
                        f"{name} is {value}, and this bundle takes the most probable token, which {name} does not change",
                        fix=f"give a temperature too (--temperature 1, in Python temperature=1.0), or drop {name}",
                    )
        if self.repetition_penalty is not None:
            changes["repetition_penalty"] = self.repetition_penalty
        return config.model_copy(update=changes)


GREEDY = Sampling(temperature=0)
"""The most probable token, after what the bundle does to the logits of every token."""


class Sampler:
    """Chooses tokens one after another; two with the same seed choose the same from the same logits.

    Args:
        sampling: what was asked for.
        config: the bundle's own way.
        prompt: token ids of the prompt, as ``generate`` counts them: every visual token stands for itself.
        eos_ids: tokens that end an answer.
    """

    def __init__(
        self,
        sampling: Sampling,
        config: GenerationConfig | None = None,
        prompt: Sequence[int] | npt.NDArray[np.int64] = (),
        eos_ids: Sequence[int] = (),
    ) -> None:
        self.sampling = sampling
        self.config = sampling.over(config or GenerationConfig())
        self._ids = [int(token) for token in prompt]
        self._prompt_tokens = len(self._ids)
        self._generator = np.random.default_rng(sampling.seed)
        self._processors = rules.processors(self.config, np.asarray(self._ids, np.int64), eos_ids)
        self._warpers = rules.warpers(self.config) if self.config.samples else []

    def __call__(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token id from logits [V].

        Raises:
            EngineError: the logits are not numbers to choose by, or the bundle's rules leave no token.
        """
        scores = self.scores(logits)
        if self.config.samples:
            token = int(self._generator.choice(scores.size, p=rules.softmax(scores)))
        else:
            token = int(scores.argmax())  # the first maximum: the lowest id of a tie
        self.accept(token)
        return token

    @property
    def new_tokens(self) -> int:
        """Tokens of the answer at most, where the request does not say how many."""
        return self.config.new_tokens(self._prompt_tokens)

    @property
    def stops(self) -> list[str]:
        """Strings that end the answer, where the request names none."""
        return [] if self.sampling.ignore_eos else self.config.stops

    def accept(self, token: int) -> None:
        """Take a token as the next one, whoever chose it."""
        self._ids.append(token)

    def scores(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the next token is chosen by, float32 [V]: minus infinity for a token that is ruled out.

        Raises:
            EngineError: the logits are not numbers to choose by, or the bundle's rules leave no token.
        """
        peak = float(logits.max())  # NaN wherever it stands makes the maximum NaN
        if not math.isfinite(peak):
            raise EngineError(
                f"the largest of {logits.size} logits is {peak}: the graph overflowed or was given NaN",
                fix="export again in fp32, which has the range that fp16 lacks",
            )
        scores = logits.astype(np.float32, copy=False)
        if self._processors:
            scores = self._processed(scores)
        for warp in self._warpers:
            scores = warp(scores)
        return scores

    def _processed(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Scores after the rules that read the token ids so far."""
        ids = np.asarray(self._ids, np.int64)
        for process in self._processors:
            scores = process(ids, scores)
        if not math.isfinite(float(scores.max())):
            raise EngineError(
                f"generation_config.json leaves none of {scores.size} tokens to choose from",
                fix="correct generation_config.json of the checkpoint (suppress_tokens, bad_words_ids, no_repeat_ngram_size), "
                "and export again",
            )
        return scores

    def probabilities(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The distribution that the next token is drawn from, float64 [V], zero where it is ruled out.

        Where nothing is drawn, it is one on the token of the largest score.

        Raises:
            EngineError: as `scores`.
        """
        scores = self.scores(logits)
        if self.config.samples:
            return rules.softmax(scores)
        chosen: npt.NDArray[np.float64] = np.zeros(scores.size)
        chosen[np.argmax(scores)] = 1.0
        return chosen
