"""What is done to the logits before a token is chosen, in the order of transformers' ``generate``.

Processors ban tokens or make them more or less likely, whether the next token is then drawn or the most probable one taken; they
read the token ids so far. Warpers shape the distribution that a token is drawn from. Both are pure functions on float32 [V].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from fico_export.bundle.generation_config import GenerationConfig

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Processor = Callable[[Ids, Scores], Scores]
Warper = Callable[[Scores], Scores]

_TOP_H_TOKENS = 100  # generate looks at no more


def processors(config: GenerationConfig, prompt: Ids, eos_ids: Sequence[int]) -> list[Processor]:
    """What a generation config does to the logits of every token, in order.

    Args:
        config: the generation config.
        prompt: token ids [S] of the prompt, as ``generate`` counts them: every visual token stands for itself.
        eos_ids: tokens that end an answer.
    """
    made: list[Processor] = []
    if config.sequence_bias:
        made.append(partial(sequence_bias, biases=config.sequence_bias))
    if (penalty := config.encoder_repetition_penalty) not in (None, 1):
        made.append(lambda _, scores: repetition_penalty(prompt, scores, penalty=1 / penalty))
    if (penalty_ := config.repetition_penalty) not in (None, 1):
        made.append(partial(repetition_penalty, penalty=penalty_))
    if config.no_repeat_ngram_size:
        made.append(partial(no_repeated_ngram, size=config.no_repeat_ngram_size))
    if config.encoder_no_repeat_ngram_size:
        made.append(partial(no_repeated_ngram, size=config.encoder_no_repeat_ngram_size, source=prompt))
    if config.bad_words_ids:
        banned = [(ids, -np.inf) for ids in config.bad_words_ids if ids not in [[eos] for eos in eos_ids]]
        made.append(partial(sequence_bias, biases=banned))
    least = config.min_length or 0
    if config.min_new_tokens is not None:
        least = prompt.size + config.min_new_tokens
    if least:
        made.append(partial(min_length, length=least, eos_ids=eos_ids))
    if config.remove_invalid_values:
        made.append(finite)
    if config.exponential_decay_length_penalty is not None:
        start, factor = config.exponential_decay_length_penalty
        made.append(partial(length_decay, start=prompt.size + start, factor=factor, eos_ids=eos_ids))
    if config.suppress_tokens:
        made.append(partial(suppress, tokens=config.suppress_tokens))
    if config.begin_suppress_tokens:
        made.append(partial(suppress, tokens=config.begin_suppress_tokens, only_at=prompt.size))
    return made


def warpers(config: GenerationConfig) -> list[Warper]:
    """What a generation config does to the distribution that tokens are drawn from, in order."""
    made: list[Warper] = []
    if config.temperature not in (None, 1):
        made.append(partial(temperature, divisor=config.temperature))
    if config.top_h is not None:
        made.append(partial(top_h, share=config.top_h))
    if config.top_k:
        made.append(partial(top_k, count=config.top_k))
    if config.top_p is not None and config.top_p < 1:
        made.append(partial(top_p, mass=config.top_p))
    if config.min_p is not None:
        made.append(partial(min_p, share=config.min_p))
    if config.typical_p is not None and config.typical_p < 1:
        made.append(partial(typical, mass=config.typical_p))
    if config.epsilon_cutoff is not None and 0 < config.epsilon_cutoff < 1:
        made.append(partial(epsilon, cutoff=config.epsilon_cutoff))
    if config.eta_cutoff is not None and 0 < config.eta_cutoff < 1:
        made.append(partial(eta, cutoff=config.eta_cutoff))
    return made


def repetition_penalty(ids: Ids, scores: Scores, *, penalty: float) -> Scores:
    """Make the tokens that were there less likely: a positive score is divided by the penalty, a negative one multiplied."""
    seen = np.unique(_known(ids, scores))
    result, old = scores.copy(), scores[seen]
    result[seen] = np.where(old < 0, old * np.float32(penalty), old / np.float32(penalty))
    return result


def no_repeated_ngram(ids: Ids, scores: Scores, *, size: int, source: Ids | None = None) -> Scores:
    """Ban tokens that would end a run of `size` tokens which `source` has, by default the tokens so far."""
    source = ids if source is None else source
    if source.size < size or ids.size < size - 1:
        return scores
    runs = np.lib.stride_tricks.sliding_window_view(source, size)
    begun = (runs[:, :-1] == ids[ids.size + 1 - size :]).all(axis=1)
    return _without(scores, runs[begun, -1])


def sequence_bias(ids: Ids, scores: Scores, *, biases: Iterable[tuple[Sequence[int], float]]) -> Scores:
    """Add a bias to each token that would end one of these runs of tokens; minus infinity bans it."""
    total = np.zeros_like(scores)
    for (*begun, last), bias in biases:
        if (
            0 <= last < scores.size
            and len(begun) <= ids.size
            and begun == ids[ids.size - len(begun) :].tolist()
        ):
            total[last] += np.float32(bias)
    return scores + total


def min_length(ids: Ids, scores: Scores, *, length: int, eos_ids: Sequence[int]) -> Scores:
    """Ban the end until there are so many tokens, the prompt included."""
    return _without(scores, eos_ids) if ids.size < length else scores


def length_decay(ids: Ids, scores: Scores, *, start: float, factor: float, eos_ids: Sequence[int]) -> Scores:
    """From `start` tokens on, make the end more likely by a factor that grows with each token."""
    if ids.size <= start:
        return scores
    ends = _known(np.asarray(eos_ids, np.int64), scores)
    result, old = scores.copy(), scores[ends]
    most = np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        growth = np.float32(min(float(np.float64(factor) ** (ids.size - start)) - 1, float(most)))
        grown = np.minimum(np.abs(old) * growth, most)
        result[ends] = np.minimum(old + np.where(np.isfinite(old), grown, np.float32(0)), most)
    return result


def finite(_: Ids, scores: Scores) -> Scores:
    """Put the largest float for infinity, the smallest for minus infinity, and 0 for what is no number."""
    limits = np.finfo(np.float32)
    return np.nan_to_num(scores, nan=0.0, posinf=float(limits.max), neginf=float(limits.min))


def suppress(ids: Ids, scores: Scores, *, tokens: Sequence[int], only_at: int | None = None) -> Scores:
    """Ban tokens; with `only_at`, where there are so many tokens so far."""
    return _without(scores, tokens) if only_at in (None, ids.size) else scores


def temperature(scores: Scores, *, divisor: float) -> Scores:
    """Divide the scores, relative to the largest: a tiny divisor then makes minus infinity of the others, never of all."""
    with np.errstate(over="ignore"):
        scaled: Scores = ((scores.astype(np.float64) - float(scores.max())) / divisor).astype(np.float32)
    return scaled


def top_k(scores: Scores, *, count: int) -> Scores:
    """Keep the most probable tokens, and those tied with the last."""
    if count >= scores.size:
        return scores
    return _keep(scores, scores >= np.partition(scores, -count)[-count])


def top_p(scores: Scores, *, mass: float) -> Scores:
    """Keep the fewest most probable tokens whose probabilities reach this sum."""
    ascending = np.argsort(scores, kind="stable")
    # float32 like the reference, so that a sum which is the threshold in float32 falls on its side.
    below = np.cumsum(softmax(scores[ascending])).astype(np.float32)
    kept = below > np.float32(1 - mass)
    kept[-1] = True
    result = np.full_like(scores, -np.inf)
    result[ascending[kept]] = scores[ascending[kept]]
    return result


def top_h(scores: Scores, *, share: float) -> Scores:
    """Keep the most probable tokens whose entropy is this share of that of the first hundred."""
    order = np.argsort(-scores, kind="stable")[:_TOP_H_TOKENS]
    probabilities = softmax(scores[order])
    terms = _entropy_terms(probabilities)
    kept = np.cumsum(terms).astype(np.float32) <= np.float32(terms.sum() * share)
    kept[0] = True
    kept &= (probabilities > 0) | (np.arange(kept.size) == 0)
    result = np.full_like(scores, -np.inf)
    result[order[kept]] = scores[order[kept]]
    return result


def min_p(scores: Scores, *, share: float) -> Scores:
    """Keep tokens that are at least this share as probable as the most probable one."""
    probabilities = softmax(scores).astype(np.float32)
    return _keep(scores, probabilities >= np.float32(share) * probabilities.max())


def typical(scores: Scores, *, mass: float) -> Scores:
    """Keep the tokens whose surprise is nearest to the expected one, until their probabilities reach this sum."""
    probabilities = softmax(scores)
    with np.errstate(divide="ignore"):
        surprise = -np.log(probabilities)
    distance = np.abs(surprise - _entropy_terms(probabilities).sum()).astype(np.float32)
    order = np.argsort(distance, kind="stable")
    below = np.cumsum(probabilities[order]).astype(np.float32) < np.float32(mass)
    last = min(int(below.sum()), scores.size - 1)
    return _keep(scores, distance <= distance[order[last]])


def epsilon(scores: Scores, *, cutoff: float) -> Scores:
    """Keep tokens at least this probable, and the most probable ones."""
    return _keep(
        scores, (softmax(scores).astype(np.float32) >= np.float32(cutoff)) | (scores == scores.max())
    )


def eta(scores: Scores, *, cutoff: float) -> Scores:
    """As `epsilon`, with a cutoff that falls with the entropy of the distribution."""
    entropy = _entropy_terms(softmax(scores)).sum()
    return epsilon(scores, cutoff=min(cutoff, float(np.sqrt(cutoff) * np.exp(-entropy))))


def softmax(scores: Scores) -> npt.NDArray[np.float64]:
    """Probabilities of scores, in float64."""
    weights = np.exp(scores.astype(np.float64) - float(scores.max()))
    result: npt.NDArray[np.float64] = weights / weights.sum()
    return result


def _entropy_terms(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    terms: npt.NDArray[np.float64] = -probabilities * logs
    return terms


def _known(ids: Ids, scores: Scores) -> Ids:
    """The ids that have a score: the embedding may know more tokens than the head."""
    return ids[(ids >= 0) & (ids < scores.size)]


def _without(scores: Scores, tokens: Sequence[int] | Ids) -> Scores:
    result = scores.copy()
    result[_known(np.asarray(tokens, np.int64), scores)] = -np.inf
    return result


def _keep(scores: Scores, kept: npt.NDArray[np.bool_]) -> Scores:
    return np.where(kept, scores, np.float32(-np.inf))
