"""Every reducer beside its independent NumPy reference, on the same inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from reference import reducers as reference

from fico_export import reducers
from fico_export.reducers.base.cues import Cues

HEADS = 4


@dataclass
class Inputs:
    """What a site offers: tokens [B, n, C], queries and keys [B, m, A], positions [B, n]."""

    tokens: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    positions: torch.Tensor
    grid: tuple[int, int]
    has_cls: bool = True

    def cues(self) -> Cues:
        return Cues(self.grid, self.positions, self.queries, self.keys, HEADS, self.has_cls)


def random_inputs(seed: int, *, grid=(24, 24), live=None, channels=64, has_cls=True, batch=1) -> Inputs:
    """Clustered tokens, so that some are near-duplicates as in pictures; `live` of the grid's cells are left."""
    generator = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    n = live or cells
    centres = torch.randn(batch, 12, channels, generator=generator)
    choice = torch.randint(0, 12, (batch, n), generator=generator)
    spread = torch.rand(batch, n, 1, generator=generator) * 1.5
    tokens = torch.gather(centres, 1, choice[..., None].expand(-1, -1, channels))
    tokens = tokens + spread * torch.randn(batch, n, channels, generator=generator)
    m = n + has_cls
    queries, keys = (torch.randn(batch, m, channels, generator=generator) for _ in range(2))
    rows = [torch.randperm(cells, generator=generator)[:n].sort().values for _ in range(batch)]
    return Inputs(tokens, queries, keys, torch.stack(rows), grid, has_cls)


def expected(method: str, inputs: Inputs, keep: int, settings: dict | None = None):
    """(tokens [K, C], indices [K]) of the NumPy reference for a batch of one."""
    tokens, queries, keys = (t[0].double().numpy() for t in (inputs.tokens, inputs.queries, inputs.keys))
    return REFERENCES[method](tokens, queries, keys, inputs, keep, **(settings or {}))


def _ficoco_v(tokens, queries, keys, inputs, keep, **settings):
    return reference.ficoco_v_layer(
        tokens,
        queries,
        keys,
        heads=HEADS,
        positions=inputs.positions[0].numpy(),
        grid=inputs.grid,
        drop=len(tokens) - keep,
        cls=inputs.has_cls,
        **settings,
    )


def _g_prune(tokens, queries, keys, inputs, keep, **settings):
    return reference.g_prune(tokens, keep, **settings)


def _pick(choose: Callable[[int, int], np.ndarray]):
    def run(tokens, queries, keys, inputs, keep, **settings):
        indices = choose(len(tokens), keep, **settings)
        return tokens[indices], indices

    return run


def _pool(tokens, queries, keys, inputs, keep):
    return reference.pool(tokens, inputs.grid, keep)


REFERENCES = {
    "ficoco-v": _ficoco_v,
    "g-prune": _g_prune,
    "none": _pick(lambda n, keep: np.arange(n)),
    "pool": _pool,
    "random": _pick(reference.random_indices),
    "uniform": _pick(reference.uniform_indices),
}


def computed(method: str, inputs: Inputs, keep: int, settings: dict | None = None):
    """(tokens [B, K, C], indices [B, K]) of the package."""
    reducer = reducers.get(method)
    result = reducer.apply(inputs.tokens, inputs.cues(), keep, reducer.parse_options(settings or {}))
    return result.tokens, result.indices
