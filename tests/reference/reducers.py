"""Plain-loop float64 reference of the visual-token reducers.

Written from the published descriptions alone and sharing no code with the package, so that a test comparing
the two compares two readings. Slow on purpose: loops stay loops, only innermost dot products are NumPy rows.

Everywhere: ties go to the lower index, index arrays are ascending int64, arithmetic is float64.
"""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

TIE = 1e-6
"""Scores this close, relative to the largest of them, have no order that FP32 could keep."""

_TINY = 1e-12


def _norm(x: Floats) -> float:
    """L2 norm of a vector [D], never below 1e-12 so that it can divide."""
    return max(math.sqrt(float(x @ x)), _TINY)


def _softmax(x: Floats) -> Floats:
    """Softmax of a vector [D]."""
    e = np.exp(x - x.max())
    return e / e.sum()


def _top(scores: Sequence[float] | Floats, count: int) -> list[int]:
    """Indices of the `count` largest scores, best first; equal scores in index order."""
    return sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))[:count]


def _ascending(indices: Iterable[int]) -> Indices:
    """Sorted int64 index array."""
    return np.array(sorted(indices), dtype=np.int64)


def _check_keep(n: int, keep: int) -> None:
    """Refuse a budget outside 1..n."""
    if not 1 <= keep <= n:
        raise ValueError(f"keep must be in 1..{n}, got {keep}")


# --------------------------------------------------------------------------------------------------- FiCoCo-V


def ficoco_v_schedule(n: int, keep: int, layers: int) -> list[int]:
    """Tokens to drop in each active layer, [layers] ints summing to n - keep.

    FiCoCo, arXiv 2411.17686, section "budget schedule": base = D // L, the first D % L layers drop base + 1.
    """
    _check_keep(n, keep)
    base, extra = divmod(n - keep, layers)
    return [base + 1 if layer < extra else base for layer in range(layers)]


def _head_mean_attention(queries: Floats, keys: Floats, heads: int, *, softmax: bool) -> Floats:
    """Attention matrix M [m, m] (row = query) averaged over heads; queries, keys [m, heads * head_dim].

    FiCoCo, arXiv 2411.17686, section "filter": scaled logits (released code) or softmax attention (paper).
    """
    m, width = queries.shape
    head_dim = width // heads
    scale = head_dim**-0.5
    mean = np.zeros((m, m))
    for head in range(heads):
        columns = slice(head * head_dim, (head + 1) * head_dim)
        q, k = queries[:, columns], np.ascontiguousarray(keys[:, columns])
        for i in range(m):
            row = (k @ q[i]) * scale
            mean[i] += _softmax(row) if softmax else row
    return mean / heads


def _minus_key_cosine(keys: Floats, heads: int) -> Floats:
    """CLS-free stand-in for the CLS term, [n]: minus the cosine of each patch's head-mean key to their mean.

    FiCoCo, arXiv 2411.17686, section "no-CLS variant"; keys [n, heads * head_dim].
    """
    n, width = keys.shape
    head_dim = width // heads
    key_mean = np.zeros((n, head_dim))
    for head in range(heads):
        key_mean += keys[:, head * head_dim : (head + 1) * head_dim]
    key_mean /= heads
    mu = np.zeros(head_dim)
    for i in range(n):
        mu += key_mean[i]
    mu /= n
    mu_unit = mu / _norm(mu)
    return np.array([-float(mu_unit @ (key_mean[i] / _norm(key_mean[i]))) for i in range(n)])


def _local_penalty(
    scores: Floats, positions: Sequence[int], grid: tuple[int, int], window: int, penalty: float
) -> Floats:
    """Scores [n] with the most redundant live cell of every window pushed outwards.

    FiCoCo, arXiv 2411.17686, section "local penalty": on the raster grid (h, w), per window x window block
    (also the partial ones at an odd border), the argmax live cell is multiplied by the coefficient if its
    score is positive and divided by it if negative. Blocks with no live cell contribute nothing.
    """
    h, w = grid
    live = {position: i for i, position in enumerate(positions)}
    out = scores.copy()
    for top in range(0, h, window):
        for left in range(0, w, window):
            best = -1
            for y in range(top, min(top + window, h)):
                for x in range(left, min(left + window, w)):
                    i = live.get(y * w + x, -1)
                    if i >= 0 and (best < 0 or scores[i] > scores[best]):
                        best = i
            if best >= 0 and scores[best] > 0:
                out[best] = scores[best] * penalty
            elif best >= 0 and scores[best] < 0:
                out[best] = scores[best] / penalty
    return out


def ficoco_v_layer(
    tokens: npt.ArrayLike,
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    *,
    heads: int,
    positions: npt.ArrayLike,
    grid: tuple[int, int],
    drop: int,
    cls: bool = True,
    lam: float = 0.35,
    attention: Literal["logits", "softmax"] = "logits",
    normalize: bool = True,
    epsilon: float = 0.998,
    window: int = 2,
    penalty: float = 2.0,
) -> tuple[Floats, Indices]:
    """One FiCoCo-V layer: filter, correlate, compress.

    FiCoCo, arXiv 2411.17686, section "FiCoCo-V".

    Args:
        tokens: live patch tokens [n, C], no CLS row.
        queries: [m, heads * head_dim], bias in, not scaled; m = 1 + n with CLS as row 0, or n without CLS.
        keys: as queries.
        heads: attention heads.
        positions: raster positions [n] of the live patches, ascending.
        grid: (h, w).
        drop: patches to merge away, 0..n-1.
        cls: whether row 0 of queries and keys is CLS.
        lam: weight of the patch term; the CLS term has 1 - lam.
        attention: scaled logits with row means, or softmax attention with column means.
        normalize: divide each term by its L2 norm.
        epsilon: quantile of the correlation threshold.
        window: side of a local-penalty window.
        penalty: its coefficient.

    Returns:
        The kept tokens [n - drop, C] and their indices [n - drop] into the n live tokens.
    """
    x = np.array(tokens, dtype=np.float64)
    q = np.asarray(queries, dtype=np.float64)
    k = np.asarray(keys, dtype=np.float64)
    raster = [int(position) for position in np.asarray(positions)]
    n, first = len(x), 1 if cls else 0
    if len(q) != n + first or len(k) != n + first or len(raster) != n:
        raise ValueError("tokens, queries, keys and positions disagree on the number of live patches")
    if q.shape[1] % heads or attention not in ("logits", "softmax"):
        raise ValueError("width must divide by heads; attention is 'logits' or 'softmax'")
    if not 0 <= drop < n:
        raise ValueError(f"drop must be in 0..{n - 1}, got {drop}")
    if drop == 0:
        return x, np.arange(n, dtype=np.int64)

    # Filter: a redundancy score per live patch.
    matrix = _head_mean_attention(q, k, heads, softmax=attention == "softmax")
    patches = matrix[first:, first:]  # [n, n], row = query
    p, c = np.zeros(n), np.zeros(n)
    for i in range(n):
        p[i] = patches[i].sum() / n if attention == "logits" else patches[:, i].sum() / n
    if cls:
        for i in range(n):
            c[i] = matrix[0, 1 + i]
    else:
        c = _minus_key_cosine(k, heads)
    if normalize:
        p, c = p / _norm(p), c / _norm(c)
    scores = _local_penalty(lam * p - (1.0 - lam) * c, raster, grid, window, penalty)
    sources = sorted(_top(scores, drop))
    gone = set(sources)
    targets = [i for i in range(n) if i not in gone]

    # Correlate and compress: every source spreads over its best targets.
    count = min(len(targets), max(1, math.ceil(round((1.0 - epsilon) * (len(targets) - 1), 9))))
    total = [x[j].copy() for j in targets]
    weight = [1.0 for _ in targets]
    for i in sources:
        row = [float(patches[i, j]) for j in targets]
        best = _top(row, count)
        values = np.array([row[t] for t in best])
        alpha = _softmax(values) if attention == "logits" else values / values.sum()
        for t, a in zip(best, alpha, strict=True):
            total[t] += a * x[i]
            weight[t] += float(a)
    merged = np.stack([total[t] / weight[t] for t in range(len(targets))])
    return merged, np.array(targets, dtype=np.int64)


# ---------------------------------------------------------------------------------------------------- G-Prune


def g_prune(
    features: npt.ArrayLike,
    keep: int,
    *,
    similarity: float = 0.5,
    temperature: float = 0.03,
    iterations: int = 5,
) -> tuple[Floats, Indices]:
    """Graph-propagation pruning of features [N, D]; returns features[idx] [keep, D] and idx [keep].

    G-Prune, arXiv 2501.02268: link tokens whose cosine reaches `similarity` (a token always links to itself),
    let the L2 norms flow through the row-softmax of cosine / `temperature` for `iterations` steps, divide by
    the number of links, keep the best.
    """
    f = np.asarray(features, dtype=np.float64)
    n = len(f)
    _check_keep(n, keep)
    unit = np.stack([row / _norm(row) for row in f])
    flow = np.zeros((n, n))
    degree = np.zeros(n)
    for i in range(n):
        cosine = unit @ unit[i]
        linked = cosine >= similarity
        linked[i] = True
        flow[i] = _softmax(np.where(linked, cosine / temperature, -5000.0))
        degree[i] = np.count_nonzero(linked)
    w = np.array([math.sqrt(float(row @ row)) for row in f])
    for _ in range(iterations):
        moved = np.zeros(n)
        for i in range(n):
            moved += w[i] * flow[i]
        w = moved
    idx = _ascending(_top(w / degree, keep))
    return f[idx], idx


# -------------------------------------------------------------------------------------------------- baselines


def uniform_indices(n: int, keep: int) -> Indices:
    """Evenly spaced indices [keep]: floor((i + 0.5) * n / keep). Baseline, section "uniform"."""
    _check_keep(n, keep)
    return np.array([(2 * i + 1) * n // (2 * keep) for i in range(keep)], dtype=np.int64)


def random_indices(n: int, keep: int, seed: int = 0) -> Indices:
    """Sorted head of a seeded permutation, [keep]. Baseline, section "random"; RandomState's stream is frozen."""
    _check_keep(n, keep)
    return _ascending(int(i) for i in np.random.RandomState(seed).permutation(n)[:keep])


def _pool_rows(grid: tuple[int, int], keep: int) -> list[int]:
    """Cells per row of the pooling layout, top to bottom; they sum to keep (baseline, section "pooling").

    The rows x cols factorisation with the squarest cells, if their aspect ratio is at most 2; otherwise rows
    of equal height whose numbers of cells differ by at most one.
    """
    h, w = grid
    best_rows, best_aspect = 0, Fraction(0)
    for rows in range(1, min(h, keep) + 1):
        if keep % rows or keep // rows > w:
            continue
        a = Fraction(w * rows, h * (keep // rows))  # (w / cols) / (h / rows)
        aspect = max(a, 1 / a)  # smallest exactly where |log a| is, without rounding
        if best_rows == 0 or aspect < best_aspect:
            best_rows, best_aspect = rows, aspect
    if best_rows and best_aspect <= 2:
        return [keep // best_rows] * best_rows
    rows = min(h, keep, max(-(-keep // w), math.floor(math.sqrt(keep * h / w) + 0.5)))
    return [(b + 1) * keep // rows - b * keep // rows for b in range(rows)]


def _overlap(low: float, high: float, cell: int) -> float:
    """Length shared by [low, high] and the unit interval [cell, cell + 1]."""
    return max(0.0, min(high, cell + 1.0) - max(low, float(cell)))


def pool(features: npt.ArrayLike, grid: tuple[int, int], keep: int) -> tuple[Floats, Indices]:
    """Area-overlap average of features [h * w, D] over `keep` cells; returns [keep, D] and idx [keep].

    Baseline, section "pooling". Every patch is a unit square and weighs overlap / cell area; idx is the patch
    that holds the cell's centre.
    """
    f = np.asarray(features, dtype=np.float64)
    h, w = grid
    if len(f) != h * w:
        raise ValueError(f"{len(f)} features do not fill a {h}x{w} grid")
    _check_keep(h * w, keep)
    layout = _pool_rows(grid, keep)
    height = h / len(layout)
    pooled, idx = [], []
    for b, cols in enumerate(layout):
        top, bottom = b * height, (b + 1) * height
        for cell in range(cols):
            width = w / cols
            left, right = cell * width, (cell + 1) * width
            mean = np.zeros(f.shape[1])
            for y in range(max(0, math.floor(top) - 1), min(h, math.ceil(bottom) + 1)):
                for x in range(max(0, math.floor(left) - 1), min(w, math.ceil(right) + 1)):
                    area = _overlap(top, bottom, y) * _overlap(left, right, x)
                    if area > 0.0:
                        mean += area / (height * width) * f[y * w + x]
            pooled.append(mean)
            cy, cx = (top + bottom) / 2, (left + right) / 2
            idx.append(math.floor(cy + 1e-9) * w + math.floor(cx + 1e-9))
    return np.stack(pooled), np.array(idx, dtype=np.int64)


def jaccard(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Shared share of two index sets, |a & b| / |a | b|; 1.0 for two empty ones."""
    left = {int(i) for i in np.asarray(a).ravel()}
    right = {int(i) for i in np.asarray(b).ravel()}
    return len(left & right) / len(left | right) if left | right else 1.0
