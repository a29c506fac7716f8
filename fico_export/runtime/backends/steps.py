"""Steps of several sequences as runs of a graph: which run together, in which pieces, in which rows of its batch.

Single tokens run together, as they cost a pass over the weights whether they are one or many; a prompt runs alone, as it keeps
the machine busy by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fico_export.bundle import graph_names
from fico_export.errors import ConfigError
from fico_export.runtime.backends.base import Step

Rows = Literal["last", "all"]
Logits = npt.NDArray[np.float32]


class Run(NamedTuple):
    """Sequences that run together, by their places among the steps, and how many tokens of each: one piece after the other."""

    steps: list[int]
    pieces: list[int]


def runs(
    steps: Sequence[Step],
    most: int,
    together: Callable[[Any], Hashable],
    pieces: Callable[[int], list[int]],
) -> list[Run]:
    """Cut steps into runs.

    Args:
        steps: of different caches.
        most: sequences of a run.
        together: cache → what those that can run together have in common.
        pieces: number of tokens → lengths that are run one after the other.
    """
    found, single = [], dict[Hashable, list[int]]()
    for i, step in enumerate(steps):
        count = len(step.embeds)
        if count == 1 and most > 1:
            single.setdefault(together(step.cache), []).append(i)
        else:
            found.append(Run([i], pieces(count)))
    for alike in single.values():
        found += [Run(alike[at : at + most], [1]) for at in range(0, len(alike), most)]
    return found


def run_all(
    steps: Sequence[Step], planned: Sequence[Run], rows: Rows, run: Callable[[list[Step]], list[Logits]]
) -> list[Logits]:
    """Logits of each step, [V] after its last token or [S, V] after all; where a run fails, no cache has grown.

    Args:
        steps: what to run.
        planned: their runs.
        rows: which logits.
        run: steps of equally many tokens → logits [1, V] or [S, V] of each; their caches grow.
    """
    assert len({id(step.cache) for step in steps}) == len(steps), "two steps of one cache"
    before = [max(step.cache.lengths) for step in steps]
    logits: list[list[Logits]] = [[] for _ in steps]
    try:
        for each in planned:
            for piece in _slices(each.pieces):
                cut = [_cut(steps[i], piece) for i in each.steps]
                for i, found in zip(each.steps, run(cut), strict=True):
                    logits[i].append(found)
    except BaseException:
        for step, length in zip(steps, before, strict=True):
            step.cache.drop_last(max(step.cache.lengths) - length)
        raise
    return [parts[-1][-1] if rows == "last" else np.concatenate(parts) for parts in logits]


def require_logits(rows: Rows, given: int | str) -> None:
    """Refuse to give logits that a graph does not compute; `given` is the axis S of those that it does.

    Raises:
        ConfigError: logits after all tokens are asked for, and there are those after the last alone.
    """
    if rows == "all" and given == 1:
        raise ConfigError(
            "logits after every token are asked for; this bundle's decoder gives those after the last one alone",
            fix="export with --target portable",
        )


def inputs(
    steps: Sequence[Step], rows: Sequence[int], batch: int, dtype: np.dtype[Any], planes: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """What a graph takes of steps, each in its row and zeros in the others.

    Embeddings [B, S, C], position ids [B, S], or [A, B, S], and of a graph that adds L `planes` those, [B, L, S, C].
    """
    (count, channels), axes = steps[0].embeds.shape, len(steps[0].positions)
    embeds, positions = np.zeros((batch, count, channels), dtype), np.zeros((axes, batch, count), np.int64)
    for row, step in zip(rows, steps, strict=True):
        embeds[row], positions[:, row] = step.embeds, step.positions
    found = {"inputs_embeds": embeds, "position_ids": positions[0] if axes == 1 else positions}
    if planes:
        found[graph_names.PLANES] = np.zeros((batch, planes, count, channels), dtype)
        for row, step in zip(rows, steps, strict=True):
            if step.planes is not None:
                found[graph_names.PLANES][row] = step.planes
    return found


def _slices(sizes: Sequence[int]) -> Iterator[slice]:
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size


def _cut(step: Step, piece: slice) -> Step:
    if piece.stop - piece.start == len(step.embeds):
        return step
    planes = None if step.planes is None else step.planes[:, piece]
    return Step(step.cache, step.embeds[piece], step.positions[:, piece], planes)
