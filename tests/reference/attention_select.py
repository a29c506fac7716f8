"""Plain-loop float64 references of the reducers that select by the encoder's own attention.

Written from the published descriptions alone and sharing no code with the package. The attention and cosine
helpers serve the other reference modules too.

Everywhere: tokens [N, C] are patches in raster order without CLS; queries and keys [m, A] are un-split and
unscaled, m = N + 1 with CLS as row 0 (`cls`) or m = N; ties go to the lower index; a method returns the kept
tokens [K, C] and their ascending int64 indices [K].
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reference.reducers import TIE, Floats, Indices, _ascending, _check_keep, _norm, _softmax, _top


def checked(tokens: npt.ArrayLike, keep: int, *rows: npt.ArrayLike, cls: bool = False) -> Floats:
    """Tokens as float64 [N, C], once the budget and the row counts of queries and keys fit them."""
    x = np.array(tokens, dtype=np.float64)
    _check_keep(len(x), keep)
    for row in rows:
        if len(np.asarray(row)) != len(x) + int(cls):
            raise ValueError(
                f"{len(np.asarray(row))} query or key rows do not fit {len(x)} tokens, cls={cls}"
            )
    return x


def unit_rows(x: Floats) -> Floats:
    """Rows of x [n, D] over their L2 norms."""
    return np.stack([row / _norm(row) for row in x])


def cosines(x: Floats) -> Floats:
    """Cosine of every pair of rows of x, [n, n], exactly symmetric."""
    unit = unit_rows(x)
    return unit @ unit.T


def column_attention(queries: npt.ArrayLike, keys: npt.ArrayLike, heads: int) -> Floats:
    """Softmax attention each key receives, [m], mean over the given queries [q, A] and over heads."""
    q, k = np.asarray(queries, dtype=np.float64), np.asarray(keys, dtype=np.float64)
    width = k.shape[1]
    if width % heads or q.shape[1] != width:
        raise ValueError(
            f"query width {q.shape[1]} and key width {width} must agree and divide by {heads} heads"
        )
    head_dim = width // heads
    received = np.zeros(len(k))
    for head in range(heads):
        columns = slice(head * head_dim, (head + 1) * head_dim)
        head_keys = np.ascontiguousarray(k[:, columns])
        for i in range(len(q)):
            received += _softmax((head_keys @ q[i, columns]) / math.sqrt(head_dim))
    return received / (heads * len(q))


def cls_attention(queries: npt.ArrayLike, keys: npt.ArrayLike, heads: int, cls: bool) -> Floats:
    """Attention `a` of CLS to each patch, [N]; without CLS that of all queries together.

    Sections 3.3 and 3.10: the softmax runs over all m keys, CLS included; only then are the patches taken.
    """
    q = np.asarray(queries, dtype=np.float64)
    return column_attention(q[:1], keys, heads)[1:] if cls else column_attention(q, keys, heads)


def cls_topk(
    tokens: npt.ArrayLike, queries: npt.ArrayLike, keys: npt.ArrayLike, heads: int, keep: int, cls: bool
) -> tuple[Floats, Indices]:
    """FasterVLM, section 3.3: the patches with the most CLS attention."""
    x = checked(tokens, keep, queries, keys, cls=cls)
    idx = _ascending(_top(cls_attention(queries, keys, heads, cls), keep))
    return x[idx], idx


def hiprune(
    tokens: npt.ArrayLike,
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    early_queries: npt.ArrayLike,
    early_keys: npt.ArrayLike,
    heads: int,
    keep: int,
    cls: bool,
    grid: tuple[int, int],
    alpha: float = 0.1,
) -> tuple[Floats, Indices]:
    """HiPrune, section 3.10: object-layer anchors, their raster neighbours, then the deep layer's best.

    Neighbours are clamped to the first and last token and wrap over row ends. Anchors and neighbours beyond
    the budget give way by deep-layer attention.
    """
    x = checked(tokens, keep, queries, keys, early_queries, early_keys, cls=cls)
    n, first = len(x), 1 if cls else 0
    if grid[0] * grid[1] != n:
        raise ValueError(f"{n} tokens do not fill a {grid[0]}x{grid[1]} grid")
    deep = column_attention(queries, keys, heads)[first:]
    early = column_attention(early_queries, early_keys, heads)[first:]
    favoured: set[int] = set()
    for anchor in _top(early, round(keep * alpha / 5)):
        for offset in (0, -1, 1, -grid[1], grid[1]):
            favoured.add(min(max(anchor + offset, 0), n - 1))
    order = _top(deep, n)  # all tokens, best first
    kept = [i for i in order if i in favoured][:keep]
    kept += [i for i in order if i not in favoured][: keep - len(kept)]
    idx = _ascending(kept)
    return x[idx], idx


def _falling(scores: Sequence[float], order: Sequence[int] | None) -> list[int]:
    """Places of all scores, largest first: the given order if it is one but for ties, else that with ties to the lower.

    Raises:
        ValueError: the given order is none of these scores.
    """
    if order is None:
        return _top(scores, len(scores))
    places = [int(place) for place in order]
    slack = TIE * max(abs(score) for score in scores)
    falls = all(scores[b] <= scores[a] + slack for a, b in itertools.pairwise(places))
    if sorted(places) != list(range(len(scores))) or not falls:
        raise ValueError("the order given is not that of the scores")
    return places


def vispruner(
    tokens: npt.ArrayLike,
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    heads: int,
    keep: int,
    cls: bool,
    important: float = 0.5,
    orders: Sequence[Sequence[int]] = (),
) -> tuple[Floats, Indices]:
    """VisPruner, section 3.11: the top by CLS attention, the others thinned by similarity eight at a time.

    The pairing follows the order of the list: first descending attention, then after every round the
    surviving evens from the most to the least similar, followed by the odds as they stood. One pair of scores
    in another order so changes all that follows: `orders`, of the attention and of each round's evens, settle
    ties, and are refused where they order more than ties.
    """
    x = checked(tokens, keep, queries, keys, cls=cls)
    cosine = cosines(x)
    given = iter(orders)
    order = _falling(list(cls_attention(queries, keys, heads, cls)), next(given, None))
    count = int(important * keep)
    residual, target = order[count:], keep - count
    while len(residual) > target:
        evens, odds = residual[0::2], residual[1::2]
        drop = min(8, len(residual) - target, len(evens))
        score = [float(cosine[i, odds].max()) if odds else 0.0 for i in evens]
        ranked = _falling(score, next(given, None))  # places among the evens, most similar first
        residual = [evens[place] for place in ranked[drop:]] + odds
    idx = _ascending(order[:count] + residual)
    return x[idx], idx


def _holov_chunk_score(x: Floats, a: Floats) -> float:
    """Score of one chunk of tokens [n, C] with attention a [n]: attention plus scaled variance of the cosines."""
    n = len(x)
    if n == 1:
        return float(a[0])
    unit = np.stack([row / (math.sqrt(float(row @ row)) + 1e-6) for row in x])
    s = unit @ unit.T
    variance = np.zeros(n)
    for i in range(n):
        s[i, i] = 0.0
        mean = float(s[i].sum()) / (n - 1)
        variance[i] = sum((float(s[i, j]) - mean) ** 2 for j in range(n)) / (n - 1)
    attention = 1000.0 * a
    scale = float(attention.mean()) / (float(variance.mean()) + 1e-6)
    return float((attention + 0.09 * variance * scale).mean())


def _holov_quotas(scores: list[float], keep: int) -> list[int]:
    """Budget of each chunk: the floor of its share, what is left over one each from the largest score on."""
    total = sum(scores) + 1e-6
    quotas = [math.floor(score / total * keep) for score in scores]
    ranked = _top(scores, len(scores))
    for turn in range(keep - sum(quotas)):
        quotas[ranked[turn % len(ranked)]] += 1
    return quotas


def holov(
    tokens: npt.ArrayLike,
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    heads: int,
    keep: int,
    cls: bool,
    chunks: int = 16,
) -> tuple[Floats, Indices]:
    """HoloV, section 3.14: budgets per contiguous chunk of the raster, spent by CLS attention.

    What a chunk cannot spend goes to the tokens of highest attention among all that are left.
    """
    x = checked(tokens, keep, queries, keys, cls=cls)
    a = cls_attention(queries, keys, heads, cls)
    base, extra = divmod(len(x), chunks)
    pieces: list[list[int]] = []
    start = 0
    for chunk in range(chunks):
        size = base + 1 if chunk < extra else base
        if size:
            pieces.append(list(range(start, start + size)))
        start += size
    quotas = _holov_quotas([_holov_chunk_score(x[piece], a[piece]) for piece in pieces], keep)
    kept: list[int] = []
    for piece, quota in zip(pieces, quotas, strict=True):
        kept += [piece[place] for place in _top(a[piece], min(quota, len(piece)))]
    held = set(kept)
    left = [i for i in _top(a, len(x)) if i not in held]
    idx = _ascending(kept + left[: keep - len(kept)])
    return x[idx], idx
