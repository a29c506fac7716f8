"""Clustering with a constant number of clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from fico_export.reducers.stages.filter import same_token
from fico_export.reducers.stages.select import first_of_maxima, top_indices

_NEIGHBOURS = 5


def density_peaks(tokens: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Centres that are dense themselves and far from anything denser; every token joins the nearest. DPC-KNN, SparseVLM's.

    Args:
        tokens: [B, q, C], q > 1.
        clusters: c, 1 … q.

    Returns:
        Centres [B, c] int64, ascending, and who joins which [B, q, c], 0 or 1.
    """
    x = tokens.to(torch.float32)
    n, channels = x.shape[1:]
    x = x - x.mean(1, keepdim=True)  # what all share would cancel to noise below
    lengths = x.square().sum(-1)
    squared = (lengths[:, :, None] + lengths[:, None, :] - 2 * (x @ x.transpose(1, 2))).clamp_min(
        0
    ) / channels
    near = torch.where(same_token(n, x), torch.inf, squared)
    k = min(_NEIGHBOURS, n - 1)
    density = (-near).topk(k, dim=-1).values.mean(-1).exp()
    place = torch.arange(n, device=x.device)
    mine, other = density[:, :, None], density[:, None, :]
    denser = (other > mine) | ((other == mine) & (place[None, :] < place[:, None]))
    distance = squared.sqrt()
    nearest_denser = torch.where(denser, distance, torch.inf).amin(-1)
    gap = torch.where(nearest_denser == torch.inf, distance.amax(-1), nearest_denser)
    centres = top_indices(density * gap, clusters)
    batch = torch.arange(x.shape[0], device=x.device)[:, None]
    to_centres = squared.transpose(1, 2)[batch, centres].transpose(1, 2)
    own = place[:, None] == centres[:, None, :]  # a centre joins itself, even where another is no further
    joins = first_of_maxima(torch.where(own, torch.inf, -to_centres))
    return centres, joins.to(torch.float32)
