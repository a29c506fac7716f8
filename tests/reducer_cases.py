"""Every reducer beside its independent NumPy reference, on the same inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from reference import attention_select, greedy, merging
from reference import reducers as reference

from fico_export import reducers
from fico_export.reducers.base.cues import Cues

HEADS = 4


@dataclass
class Inputs:
    """What a site offers: tokens [B, n, C], queries and keys [B, m, A], positions [B, n].

    The earlier layer and the following one see the same rows, turned by one and by two channels.
    """

    tokens: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    positions: torch.Tensor
    grid: tuple[int, int]
    has_cls: bool = True

    def cues(self, kind: type[Cues] = Cues) -> Cues:
        earlier, following = (
            Cues(self.grid, self.positions, self.queries.roll(shift, -1), self.keys, heads, self.has_cls)
            for shift, heads in ((1, HEADS), (2, 1))
        )
        return kind(
            self.grid, self.positions, self.queries, self.keys, HEADS, self.has_cls, None, earlier, following
        )


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


def _by_attention(choose, *, early=False):
    def run(tokens, queries, keys, inputs, keep, **settings):
        extra = (np.roll(queries, 1, -1), keys) if early else ()
        grid = {"grid": inputs.grid} if early else {}
        return choose(
            tokens, queries, keys, *extra, heads=HEADS, keep=keep, cls=inputs.has_cls, **grid, **settings
        )

    return run


def _by_tokens(choose):
    def run(tokens, queries, keys, inputs, keep, **settings):
        return choose(tokens, keep, **settings)

    return run


def _prumerge(tokens, queries, keys, inputs, keep, **settings):
    following = np.roll(queries, 2, -1)
    return merging.prumerge(tokens, queries, keys, following, keys, keep, inputs.has_cls, **settings)


def _tome(tokens, queries, keys, inputs, keep):
    return merging.tome_layer(tokens, keys, np.ones(len(tokens)), HEADS, keep, inputs.has_cls)[:2]


REFERENCES = {
    "cenprune": _by_tokens(greedy.cenprune),
    "cls-topk": _by_attention(attention_select.cls_topk),
    "dart": _by_tokens(greedy.dart),
    "divprune": _by_tokens(greedy.divprune),
    "dpp": _by_tokens(greedy.dpp),
    "evit": _by_attention(merging.evit_layer),
    "hiprune": _by_attention(attention_select.hiprune, early=True),
    "holov": _by_attention(attention_select.holov),
    "prumerge": _prumerge,
    "scope": _by_attention(greedy.scope),
    "tome": _tome,
    "visionzip": _by_attention(merging.visionzip),
    "ficoco-v": _ficoco_v,
    "g-prune": _g_prune,
    "none": _pick(lambda n, keep: np.arange(n)),
    "pool": _pool,
    "random": _pick(reference.random_indices),
    "uniform": _pick(reference.uniform_indices),
}


def least_keep(method: str, n: int, has_cls: bool) -> int:
    """The fewest of n tokens that one application can leave: ToMe merges at most one half into the other."""
    return n - n // 2 if method == "tome" else 1


def computed(method: str, inputs: Inputs, keep: int, settings: dict | None = None):
    """(tokens [B, K, C], indices [B, K]) of the package."""
    reducer = reducers.get(method)
    result = reducer.apply(inputs.tokens, inputs.cues(), keep, reducer.parse_options(settings or {}))
    return result.tokens, result.indices
