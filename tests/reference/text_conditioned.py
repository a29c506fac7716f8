"""Plain-loop float64 reference of the text-conditioned determinantal point process.

Written from the published description alone and sharing no code with the package; conventions as in
`reference.attention_select`. The other text-conditioned method's is `reference.greedy.mmtok`.
"""

import math
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from reference.attention_select import checked, cosines, unit_rows
from reference.reducers import TIE, Floats, Indices, _ascending


def relevance(clip_tokens: npt.ArrayLike, segments: npt.ArrayLike) -> Floats:
    """CDPruner, section 3.9: mean over segments of minus the cosine, scaled to 1e-6 … 1 over one image's tokens.

    clip_tokens [N, P] and segments [S, P] lie in CLIP's joint space, of any length.
    """
    u, t = (unit_rows(np.asarray(x, dtype=np.float64)) for x in (clip_tokens, segments))
    score = np.zeros(len(u))
    for i in range(len(u)):
        for row in t:
            score[i] -= float(u[i] @ row) / len(t)
    return (score - score.min() + 1e-6) / (score.max() - score.min())


def cdpruner(
    tokens: npt.ArrayLike,
    clip_tokens: npt.ArrayLike,
    segments: npt.ArrayLike,
    keep: int,
    theta: float | None = None,
    observed: Collection[int] = (),
) -> tuple[Floats, Indices]:
    """CDPruner, section 3.9: greedy MAP on the kernel diag(q) S diag(q), tokens [N, D] after the projector.

    Given `observed`, of gains that tie one in that set is taken.
    """
    x = checked(tokens, keep)
    q = relevance(clip_tokens, segments)
    if theta is not None:
        q = np.exp(theta / (2.0 * (1.0 - theta)) * q)
    similarity = cosines(x)
    np.fill_diagonal(similarity, 1.0)
    kernel = q[:, None] * similarity * q[None, :]
    gain = np.diag(kernel).copy()
    rows: list[Floats] = []
    chosen: list[int] = []
    for _ in range(keep):
        best = -1
        for i in range(len(x)):
            if i not in chosen and (best < 0 or gain[i] > gain[best]):
                best = i
        near = [i for i in observed if i not in chosen and gain[i] >= gain[best] * (1.0 - TIE)]
        best = max(near, key=lambda i: gain[i]) if near else best
        row = kernel[best].copy()
        for earlier in rows:
            row -= earlier[best] * earlier
        row /= math.sqrt(max(float(gain[best]), 1e-300))
        rows.append(row)
        gain = gain - row * row
        chosen.append(best)
    idx = _ascending(chosen)
    return x[idx], idx
