"""Every reducer beside its independent NumPy reference, on the same inputs."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from reference import attention_select, greedy, merging, text_conditioned
from reference import reducers as reference

from fico_export import reducers
from fico_export.exporter.trace import simplify, trace
from fico_export.models.ports import GraphModule, fixed
from fico_export.reducers.base.cues import Cues, Prompt
from fico_export.reducers.base.reducer import Reducer, Site
from fico_export.reducers.stages.filter import normalize

HEADS = 4


@dataclass
class Inputs:
    """What a site offers: tokens [B, n, C], queries and keys [B, m, A], positions [B, n].

    The earlier layer and the following one see the same rows, turned by one and by two channels. Before the projector the
    tokens are their keys, in CLIP's space their queries; the last queries are the prompt, every third row of it filling.
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
        cues = kind(
            self.grid, self.positions, self.queries, self.keys, HEADS, self.has_cls, None, earlier, following
        )
        words = self.queries[:, -8:]
        mask = (torch.arange(words.shape[1]) % 3 < 2).expand(len(words), -1)
        first = int(self.has_cls)
        return replace(
            cues,
            features=self.keys[:, first:],
            sensitivity=self.keys[:, first:].square().mean(-1),
            prompt=Prompt(words, mask, self.tokens),
            clip_text=torch.stack([self._segment(row) for row in (0, -1)]).mean(0),
            clip_tokens=self.queries[:, first:],
        )

    def _segment(self, row: int) -> torch.Tensor:
        return normalize(self.keys[:, row])


def random_inputs(seed: int, *, grid=(24, 24), live=None, channels=64, has_cls=True, batch=1) -> Inputs:
    """Clustered tokens, so that some are near-duplicates as in images; `live` of the grid's cells are left."""
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


def _mmtok(tokens, queries, keys, inputs, keep, **settings):
    cues = inputs.cues()
    mask = cues.prompt.mask[0].numpy()
    indices = greedy.mmtok(keys[-len(tokens) :], tokens, queries[-8:], mask, keep, **settings)[1]
    return tokens[indices], indices


def _cdpruner(tokens, queries, keys, inputs, keep, **settings):
    return text_conditioned.cdpruner(tokens, queries[-len(tokens) :], keys[[0, -1]], keep, **settings)


def _zooprune(tokens, queries, keys, inputs, keep, **settings):
    return greedy.zooprune(tokens, (keys[-len(tokens) :] ** 2).mean(axis=1), keep, **settings)


def _prumerge(tokens, queries, keys, inputs, keep, **settings):
    following = np.roll(queries, 2, -1)
    return merging.prumerge(tokens, queries, keys, following, keys, keep, inputs.has_cls, **settings)


def _tome(tokens, queries, keys, inputs, keep):
    return merging.tome_layer(tokens, keys, np.ones(len(tokens)), HEADS, keep, inputs.has_cls)[:2]


REFERENCES = {
    "cdpruner": _cdpruner,
    "cenprune": _by_tokens(greedy.cenprune),
    "cls-topk": _by_attention(attention_select.cls_topk),
    "dart": _by_tokens(greedy.dart),
    "divprune": _by_tokens(greedy.divprune),
    "dpp": _by_tokens(greedy.dpp),
    "evit": _by_attention(merging.evit_layer),
    "mmtok": _mmtok,
    "hiprune": _by_attention(attention_select.hiprune, early=True),
    "holov": _by_attention(attention_select.holov),
    "prumerge": _prumerge,
    "scope": _by_attention(greedy.scope),
    "tome": _tome,
    "visionzip": _by_attention(merging.visionzip),
    "vispruner": _by_attention(attention_select.vispruner),
    "zooprune": _zooprune,
    "ficoco-v": _ficoco_v,
    "g-prune": _g_prune,
    "none": _pick(lambda n, keep: np.arange(n)),
    "pool": _pool,
    "random": _pick(reference.random_indices),
    "uniform": _pick(reference.uniform_indices),
}


def acts_before_the_decoder(method: str) -> bool:
    record = reducers.get(method)
    return isinstance(record, Reducer) and record.site is not Site.DECODER_LAYER


def reads_the_picture_alone(method: str) -> bool:
    return acts_before_the_decoder(method) and not reducers.get(method).cues & {"prompt", "clip_text"}


def least_keep(method: str, n: int, has_cls: bool) -> int:
    """The fewest of n tokens that one application can leave: ToMe merges at most one half into the other."""
    return n - n // 2 if method == "tome" else 1


@dataclass
class Result:
    """What the package gives: tokens [B, K, C], indices [B, K], and the orders [B, n] that the method sorted by."""

    tokens: torch.Tensor
    indices: torch.Tensor
    orders: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def watched(method: str) -> Iterator[list[torch.Tensor]]:
    """The orders that the method sorts by while this lasts."""
    module = importlib.import_module("fico_export.reducers." + method.replace("-", "_"))
    orders: list[torch.Tensor] = []
    if not hasattr(module, "order"):
        yield orders
        return
    sort = module.order

    def watch(scores: torch.Tensor) -> torch.Tensor:
        orders.append(sort(scores))
        return orders[-1]

    with mock.patch.object(module, "order", watch):
        yield orders


def run(method: str, inputs: Inputs, keep: int, settings: dict | None = None) -> Result:
    reducer = reducers.get(method)
    with watched(method) as orders:
        reduced = reducer.apply(inputs.tokens, inputs.cues(), keep, reducer.parse_options(settings or {}))
    return Result(reduced.tokens, reduced.indices, orders)


def export_alone(method: str, example: Inputs, keep: int, path: Path) -> Callable[[Inputs], Result]:
    """The reducer in ONNX Runtime, as a graph that holds nothing else, for inputs of the example's shapes."""
    orders = [f"order_{i}" for i in range(len(run(method, example, keep).orders))]
    names = ["tokens", "queries", "keys", "positions"]
    ports = fixed({name: getattr(example, name) for name in names}, ["reduced", "indices", *orders])

    class Alone(GraphModule):
        def ports(self):
            return ports

        def forward(self, tokens, queries, keys, positions):
            shown = replace(example, tokens=tokens, queries=queries, keys=keys, positions=positions)
            result = run(method, shown, keep)
            return result.tokens, result.indices, *result.orders

    graph = trace(Alone, 18)
    simplify(graph)
    graph.ir_version = 10
    ir.save(graph, path)
    session = ort.InferenceSession(str(path))
    read = [i.name for i in session.get_inputs()]

    def run_alone(inputs: Inputs) -> Result:
        outputs = session.run(None, {name: getattr(inputs, name).numpy() for name in read})
        tokens, indices, *sorted_by = (torch.from_numpy(output) for output in outputs)
        return Result(tokens, indices, sorted_by)

    return run_alone


NUDGES = 16

# What the reference is told of the result, to settle scores that tie within 1e-6; it still decides on all others.
TIES: dict[str, Callable[[Result], dict[str, Any]]] = {
    **dict.fromkeys(
        ("cdpruner", "cenprune", "divprune", "dpp", "mmtok", "scope", "zooprune"),
        lambda result: {"observed": result.indices[0].tolist()},
    ),
    "prumerge": lambda result: {
        "observed": dict(zip(result.indices[0].tolist(), result.tokens[0].numpy(), strict=True))
    },
    "vispruner": lambda result: {"orders": [order[0].tolist() for order in result.orders]},
}


def assert_right(
    method: str, inputs: Inputs, keep: int, result: Result, settings: dict | None = None
) -> tuple[bool, float]:
    """The indices of the reference, and its tokens within 1e-4.

    Returns whether a tie had to be settled for that, and the largest difference of the tokens.
    """
    settings = settings or {}
    want = expected(method, inputs, keep, settings)
    tied = not _agree(want, result)
    if tied and method in TIES:
        want = expected(method, inputs, keep, settings | TIES[method](result))
    elif tied:
        want = _of_nudged_inputs(method, inputs, keep, settings, result) or want
    np.testing.assert_array_equal(result.indices[0], want[1])
    np.testing.assert_allclose(result.tokens[0], want[0], atol=1e-4)
    return tied, float(np.abs(result.tokens[0].numpy() - want[0]).max())


def _of_nudged_inputs(method, inputs: Inputs, keep: int, settings: dict, result: Result):
    """What the reference makes of inputs that rounding cannot tell apart, where it is the result; else None.

    A decision that one part in a million turns is none: how a processor rounds its products settles it.
    """
    for seed in range(NUDGES):
        generator = torch.Generator().manual_seed(seed)
        nudged = [
            tensor * (1 + 1e-6 * torch.randn(tensor.shape, generator=generator))
            for tensor in (inputs.tokens, inputs.queries, inputs.keys)
        ]
        near = replace(inputs, tokens=nudged[0], queries=nudged[1], keys=nudged[2])
        want = expected(method, near, keep, settings)
        if _agree(want, result):
            return want
    return None


def _agree(want, result: Result) -> bool:
    return np.array_equal(result.indices[0], want[1]) and np.allclose(result.tokens[0], want[0], atol=1e-4)


def computed(method: str, inputs: Inputs, keep: int, settings: dict | None = None):
    """(tokens [B, K, C], indices [B, K]) of the package."""
    result = run(method, inputs, keep, settings)
    return result.tokens, result.indices
