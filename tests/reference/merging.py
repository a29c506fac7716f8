"""Plain-loop float64 references of the reducers that fuse or merge tokens.

Written from the published descriptions alone and sharing no code with the package; conventions as in
`reference.attention_select`. A fused token stands, in the indices and in the order of the output, for the
token each docstring names.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from reference.attention_select import checked, cls_attention, cosines, unit_rows
from reference.reducers import TIE, Floats, Indices, _top


def _raster(result: dict[int, Floats]) -> tuple[Floats, Indices]:
    """Output tokens keyed by the token each stands for, as rows [K, C] and indices [K] in raster order."""
    order = sorted(result)
    return np.stack([result[i] for i in order]), np.array(order, dtype=np.int64)


def _mean_keys(keys: npt.ArrayLike, heads: int) -> Floats:
    """Keys [m, heads * head_dim] averaged over heads, [m, head_dim]."""
    k = np.asarray(keys, dtype=np.float64)
    if k.shape[1] % heads:
        raise ValueError(f"key width {k.shape[1]} must divide by {heads} heads")
    head_dim = k.shape[1] // heads
    mean = np.zeros((len(k), head_dim))
    for head in range(heads):
        mean += k[:, head * head_dim : (head + 1) * head_dim]
    return mean / heads


def visionzip(
    tokens: npt.ArrayLike,
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    heads: int,
    keep: int,
    cls: bool,
    contextual: int | None = None,
) -> tuple[Floats, Indices]:
    """VisionZip, section 3.4, without CLS among the output.

    The dominant patches by CLS attention stay as they are. Of the rest, evenly strided targets take in every
    other one by key cosine: target plus the mean of its members. A contextual token stands for its target.
    """
    x = checked(tokens, keep, queries, keys, cls=cls)
    n = len(x)
    count = max(1, keep * 5 // 32) if contextual is None else contextual
    if not 1 <= count <= keep:
        raise ValueError(f"contextual must be in 1..{keep}, got {count}")
    dominant = _top(cls_attention(queries, keys, heads, cls), keep - count)
    rest = [i for i in range(n) if i not in dominant]
    step = max(1, len(rest) // count)
    targets = [rest[place * step] for place in range(count)]
    similarity = cosines(_mean_keys(keys, heads)[1 if cls else 0 :])
    members: dict[int, list[int]] = {target: [] for target in targets}
    for i in rest:
        if i not in members:
            best = _top([similarity[i, target] for target in targets], 1)[0]
            members[targets[best]].append(i)
    result = {i: x[i] for i in dominant}
    for target, joined in members.items():
        result[target] = x[target].copy()
        for i in joined:
            result[target] += x[i] / len(joined)
    return _raster(result)


def prumerge(
    tokens: npt.ArrayLike,
    queries: npt.ArrayLike,
    keys: npt.ArrayLike,
    next_queries: npt.ArrayLike,
    next_keys: npt.ArrayLike,
    keep: int,
    cls: bool,
    neighbours: int = 32,
    observed: Mapping[int, Floats] | None = None,
) -> tuple[Floats, Indices]:
    """PruMerge+, section 3.5, static form with a fixed budget.

    A quarter by attention, the others but one at even strides through what is left, and one token fused from
    all that were not kept; every kept token takes in its nearest by key. The attention, without a head split,
    and the keys are those of the layer after the features, so `queries` and `keys` of the features' own layer
    are not read. The fused token stands for the token of highest attention among those not kept. Where the last
    neighbour to come in ties with the first left out, the one comes in that brings the token closer to `observed`.
    """
    x = checked(tokens, keep, queries, keys, next_queries, next_keys, cls=cls)
    n = len(x)
    c = cls_attention(next_queries, next_keys, 1, cls)
    salient = max(1, keep // 4) if keep > 1 else 0
    kept = _top(c, salient)
    rest = [i for i in range(n) if i not in kept]
    count = max(0, keep - 1 - salient)
    kept += [rest[(2 * i + 1) * len(rest) // (2 * count)] for i in range(count)]
    similarity = cosines(np.asarray(next_keys, dtype=np.float64)[1 if cls else 0 :])
    result = {}
    for i in kept:
        others = [j for j in range(n) if j != i]
        count = min(neighbours, n - 1)
        near = [others[place] for place in _top(similarity[i, others], count + 1)]
        result[i] = x[i] + sum(c[j] * x[j] for j in near[:count])
        if observed and len(near) > count and similarity[i, near[-2]] - similarity[i, near[-1]] <= TIE:
            other = result[i] - c[near[-2]] * x[near[-2]] + c[near[-1]] * x[near[-1]]
            result[i] = min(result[i], other, key=lambda row: float(np.abs(row - observed[i]).max()))
    dropped = [i for i in range(n) if i not in kept]
    fused = np.zeros(x.shape[1])
    for i in dropped:
        fused += c[i] * x[i]
    result[dropped[_top(c[dropped], 1)[0]]] = fused
    return _raster(result)


def evit_layer(
    tokens: npt.ArrayLike, queries: npt.ArrayLike, keys: npt.ArrayLike, heads: int, keep: int, cls: bool
) -> tuple[Floats, Indices]:
    """One active EViT layer, section 3.2: the top keep - 1 by CLS attention, the others in one fused token.

    The fused token weighs each dropped one by its attention, not renormalised, and stands for the dropped one
    of highest attention, in its raster place.
    """
    x = checked(tokens, keep, queries, keys, cls=cls)
    a = cls_attention(queries, keys, heads, cls)
    order = _top(a, len(x))
    result = {i: x[i] for i in order[: keep - 1]}
    fused = np.zeros(x.shape[1])
    for i in order[keep - 1 :]:
        fused += a[i] * x[i]
    result[order[keep - 1]] = fused
    return _raster(result)


def tome_layer(
    tokens: npt.ArrayLike, keys: npt.ArrayLike, sizes: npt.ArrayLike, heads: int, keep: int, cls: bool
) -> tuple[Floats, Indices, Floats]:
    """One ToMe layer, section 3.1: bipartite matching of alternate rows, the best-matched merge away.

    Even rows (CLS, never merged, among them) look for their most similar odd row by head-mean key; the
    n - keep best-matched join it, weighted by sizes [N]. Returns tokens, indices and sizes in raster order.
    """
    x = checked(tokens, keep, keys, cls=cls)
    weight = np.array(sizes, dtype=np.float64)
    n, first = len(x), 1 if cls else 0
    if weight.shape != (n,):
        raise ValueError(f"sizes of shape {weight.shape} do not fit {n} tokens")
    unit = unit_rows(_mean_keys(keys, heads))
    seekers = [row for row in range(0, n + first, 2) if row >= first]  # rows, not patches; CLS never merges
    hosts = list(range(1, n + first, 2))
    drop = n - keep
    if drop > len(seekers):
        raise ValueError(f"one layer can drop at most {len(seekers)} of {n} tokens, not {drop}")
    partner, closeness = [], []
    for row in seekers if drop else []:
        similarity = [float(unit[row] @ unit[host]) for host in hosts]
        best = _top(similarity, 1)[0]
        partner.append(hosts[best])
        closeness.append(similarity[best])
    total = {i: weight[i] * x[i] for i in range(n)}
    for place in _top(closeness, drop):
        source, target = seekers[place] - first, partner[place] - first
        total[target] = total[target] + total.pop(source)
        weight[target] += weight[source]
    merged, idx = _raster({i: value / weight[i] for i, value in total.items()})
    return merged, idx, weight[idx]
