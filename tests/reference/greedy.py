"""Plain-loop float64 references of the reducers that select one token after the other, and of DART.

Written from the published descriptions alone and sharing no code with the package; conventions as in
`reference.attention_select`.
"""

import math
from collections.abc import Callable, Collection
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from reference.attention_select import checked, cls_attention, cosines, unit_rows
from reference.reducers import TIE, Floats, Indices, _ascending, _norm, _softmax, _top

State = TypeVar("State")


def _best_free(scores: Floats, chosen: list[int]) -> int:
    """Index of the largest score outside `chosen`, the lowest one of equals."""
    best, taken = -1, set(chosen)
    for i in range(len(scores)):
        if i not in taken and (best < 0 or scores[i] > scores[best]):
            best = i
    return best


def greedily(
    keep: int,
    state: State,
    scores: Callable[[State], Floats],
    advance: Callable[[State, int], State],
    observed: Collection[int] = (),
) -> list[int]:
    """Token after token of the largest score, `keep` of them; `advance` gives the state after a choice.

    Scores tie within 1e-6 of the largest at the start. Given `observed`, ties are decided so as to end in that
    set; where all are exactly equal at the start nothing is rounded, and the lowest goes first.

    Raises:
        ValueError: no decision on the ties ends in `observed`.
    """
    slack = TIE * float(np.abs(scores(state)).max())

    def extend(chosen: list[int], state: State) -> list[int] | None:
        if len(chosen) == keep:
            return chosen
        now = scores(state)
        best = _best_free(now, chosen)
        candidates = [best]
        if observed and (chosen or now.min() < now.max()):
            tied = [i for i in observed if i not in chosen and now[i] >= now[best] - slack]
            candidates = sorted(tied, key=lambda i: -now[i])
        for i in candidates:
            if found := extend([*chosen, i], advance(state, i)):
                return found
        return None

    chosen = extend([], state)
    if chosen is None:
        raise ValueError("a greedy choice differs by more than a tie")
    return chosen


def _min_max(x: Floats) -> Floats:
    """x [n] mapped to [0, 1]; a constant x becomes zeros."""
    return (x - x.min()) / max(float(x.max() - x.min()), 1e-12)


def _loneliness(cosine: Floats) -> Floats:
    """Distance 1 - cosine [n, n] of each token to its nearest other one, [n]: DivPrune's first has the largest."""
    return np.array([float(np.delete(1.0 - cosine[i], i).min(initial=2.0)) for i in range(len(cosine))])


def _max_min(
    first: Floats, weight: Floats, cosine: Floats, keep: int, observed: Collection[int]
) -> list[int]:
    """The best by `first` [n], then the free token of largest weight [n] times distance to its nearest chosen one."""

    def scores(nearest: Floats | None) -> Floats:
        return first if nearest is None else weight * nearest

    def advance(nearest: Floats | None, i: int) -> Floats:
        return 1.0 - cosine[i] if nearest is None else np.minimum(nearest, 1.0 - cosine[i])

    return greedily(keep, None, scores, advance, observed)


def divprune(tokens: npt.ArrayLike, keep: int, observed: Collection[int] = ()) -> tuple[Floats, Indices]:
    """DivPrune, section 3.6: greedy max-min cosine distance over the tokens after the projector."""
    x = checked(tokens, keep)
    cosine = cosines(x)
    idx = _ascending(_max_min(_loneliness(cosine), np.ones(len(x)), cosine, keep, observed))
    return x[idx], idx


def cenprune(tokens: npt.ArrayLike, keep: int, observed: Collection[int] = ()) -> tuple[Floats, Indices]:
    """Cen-Prune, section 3.7, DivPrune form: distances of the centred tokens, times distinctiveness.

    Distinctiveness is minus the mean cosine to the other tokens, uncentred, min-max scaled; the first token
    is DivPrune's, also uncentred.
    """
    x = checked(tokens, keep)
    n = len(x)
    cosine = cosines(x)
    distinct = np.array([-(cosine[i].sum() - cosine[i, i]) / max(n - 1, 1) for i in range(n)])
    centred = cosines(x - x.mean(axis=0))
    idx = _ascending(_max_min(_loneliness(cosine), _min_max(distinct), centred, keep, observed))
    return x[idx], idx


def scope(
    tokens: npt.ArrayLike,
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    heads: int,
    keep: int,
    cls: bool,
    alpha: float = 1.0,
    observed: Collection[int] = (),
) -> tuple[Floats, Indices]:
    """SCOPE, section 3.8: facility location over cosines, each gain weighted by attention ** alpha."""
    x = checked(tokens, keep, queries, keys, cls=cls)
    saliency = cls_attention(queries, keys, heads, cls) ** alpha
    cosine = cosines(x)

    def gain(covered: Floats) -> Floats:
        return saliency * np.maximum(cosine - covered, 0.0).sum(axis=1)  # row i: what i adds to every j

    def advance(covered: Floats, i: int) -> Floats:
        return np.maximum(covered, cosine[i])

    idx = _ascending(greedily(keep, np.zeros(len(x)), gain, advance, observed))
    return x[idx], idx


def dpp(tokens: npt.ArrayLike, keep: int, observed: Collection[int] = ()) -> tuple[Floats, Indices]:
    """Greedy MAP of the determinantal point process on cosines: CDPruner, section 3.9, relevance 1.

    An incremental Cholesky factor: `free` is what of each token's diagonal the chosen ones leave. All start
    at exactly 1, so the first token chosen is token 0. Where cosines are small their squares tie. Beyond the
    rank of the tokens only rounding noise is left to choose by.
    """
    x = checked(tokens, keep)
    kernel = cosines(x)
    np.fill_diagonal(kernel, 1.0)

    def advance(state: tuple[Floats, Floats], j: int) -> tuple[Floats, Floats]:
        free, factor = state
        row = (kernel[j] - factor[:, j] @ factor) / math.sqrt(max(float(free[j]), 1e-12))
        return free - row * row, np.vstack([factor, row])

    start = np.diag(kernel).copy(), np.zeros((0, len(x)))
    idx = _ascending(greedily(keep, start, lambda state: state[0], advance, observed))
    return x[idx], idx


def difference_sensitivity(
    tokens: npt.ArrayLike,
    project: Callable[[Floats], Floats],
    directions: int = 64,
    step: float = 0.01,
    seed: int = 0,
) -> Floats:
    """ZOO-Prune's sensitivity, section 3.13: how far the projection [n, C] → [n, D] of each token moves, [N].

    Mean over random unit directions of the central difference's length.
    """
    x = np.asarray(tokens, dtype=np.float64)
    total = np.zeros(len(x))
    for u in unit_rows(np.random.default_rng(seed).standard_normal((directions, x.shape[1]))):
        ahead = np.asarray(project(x + step * u), dtype=np.float64)
        behind = np.asarray(project(x - step * u), dtype=np.float64)
        for i in range(len(x)):
            change = ahead[i] - behind[i]
            total[i] += math.sqrt(float(change @ change)) / (2.0 * step)
    return total / directions


def jacobian_sensitivity(
    tokens: npt.ArrayLike,
    weight_1: npt.ArrayLike,
    bias_1: npt.ArrayLike,
    weight_2: npt.ArrayLike,
    slope: Callable[[float], float],
) -> Floats:
    """What stands for it here, [N]: root of the sum of squares of what each hidden unit adds to the Jacobian.

    Unit h adds the matrix w2[:, h] g'(z_h) w1[h, :]; weight_1 [H, C], bias_1 [H], weight_2 [D, H], slope is g'.
    """
    x, w1, b1, w2 = (np.asarray(a, dtype=np.float64) for a in (tokens, weight_1, bias_1, weight_2))
    size = [_norm(w1[h]) * _norm(np.ascontiguousarray(w2[:, h])) for h in range(len(w1))]
    result = np.zeros(len(x))
    for i in range(len(x)):
        hidden = w1 @ x[i] + b1
        result[i] = math.sqrt(sum((slope(float(hidden[h])) * size[h]) ** 2 for h in range(len(w1))))
    return result


def gelu_slope(z: float) -> float:
    """Derivative of GELU, z Φ(z), at z."""
    return 0.5 * (1.0 + math.erf(z / math.sqrt(2.0))) + z * math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)


def zooprune(
    tokens: npt.ArrayLike, sensitivity: npt.ArrayLike, keep: int, observed: Collection[int] = ()
) -> tuple[Floats, Indices]:
    """ZOO-Prune, section 3.13: min-max scaled sensitivity [N] times dissimilarity of the projected tokens, greedily."""
    x = checked(tokens, keep)
    weight = _min_max(np.asarray(sensitivity, dtype=np.float64))
    idx = _ascending(_max_min(weight, weight, cosines(x), keep, observed))
    return x[idx], idx


def dart(tokens: npt.ArrayLike, keep: int, pivots: int = 8) -> tuple[Floats, Indices]:
    """DART at the embeddings, section 4: pivots of largest L1 norm, then what is least like them on average."""
    x = checked(tokens, keep)
    n = len(x)
    pivot = _top(np.array([np.abs(row).sum() for row in x]), min(pivots, keep))
    cosine = cosines(x)
    likeness = [sum(float(cosine[i, p]) for p in pivot) / len(pivot) for i in range(n)]
    others = [i for i in range(n) if i not in pivot]
    least = _top([-likeness[i] for i in others], keep - len(pivot))
    idx = _ascending(pivot + [others[place] for place in least])
    return x[idx], idx


def mmtok(
    tokens: npt.ArrayLike,
    projected: npt.ArrayLike,
    text: npt.ArrayLike,
    mask: npt.ArrayLike,
    keep: int,
    text_temperature: float = 0.02,
    vision_temperature: float = 0.2,
    weight: float = 0.5,
    observed: Collection[int] = (),
) -> tuple[Floats, Indices]:
    """MMTok, section 4: greedy coverage of the text rows and of the vision rows.

    tokens [N, C] come before the projector, projected [N, D] after it; text [T, D] counts where mask [T].
    Every row is a softmax over the N tokens, and a token covers a row as far as its entry there.
    """
    x = checked(tokens, keep)
    vision = np.asarray(projected, dtype=np.float64)
    words = np.asarray(text, dtype=np.float64)
    real = np.asarray(mask, dtype=bool)
    if len(vision) != len(x) or len(words) != len(real):
        raise ValueError("tokens and projected, and text and mask, must have the same number of rows")
    n = len(x)
    vision_unit = unit_rows(vision)
    text_rows = [
        _softmax((vision_unit @ (words[t] / _norm(words[t]))) / text_temperature)
        for t in range(len(words))
        if real[t]
    ]
    vision_rows = np.stack([_softmax(row / vision_temperature) for row in cosines(x)])

    def gain(state: tuple[Floats, Floats]) -> Floats:
        total = np.zeros(n)
        for t, row in enumerate(text_rows):
            total += weight * np.maximum(row - state[0][t], 0.0) / len(text_rows)
        for j in range(n):
            total += (1.0 - weight) * np.maximum(vision_rows[j] - state[1][j], 0.0) / n
        return total

    def advance(state: tuple[Floats, Floats], best: int) -> tuple[Floats, Floats]:
        text_covered = [max(state[0][t], row[best]) for t, row in enumerate(text_rows)]
        return np.array(text_covered), np.maximum(state[1], vision_rows[:, best])

    idx = _ascending(greedily(keep, (np.zeros(len(text_rows)), np.zeros(n)), gain, advance, observed))
    return x[idx], idx
