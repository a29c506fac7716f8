"""What runs a bundle's graphs: the record of a backend, and what answers need of whatever it opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fico_export.bundle import graph_names
from fico_export.bundle.manifest import Graph, Manifest
from fico_export.devices.nvidia import Runtime
from fico_export.errors import BundleError, FicoError, InputError

Array = npt.NDArray[np.generic]


class Session(Protocol):
    """A graph that is ready to run, as `onnxruntime.InferenceSession` is."""

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, npt.NDArray[Any]]
    ) -> list[npt.NDArray[Any]]:
        """Outputs by name, or all in the graph's order, of inputs by name."""
        ...


class Cache(Protocol):
    """What a conversation needs to know of the keys and values of the tokens seen so far."""

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each layer; they differ where the decoder reduces visual tokens."""
        ...

    def drop_last(self, count: int) -> None:
        """Forget the last `count` tokens, to continue a conversation from there."""
        ...


class Step(NamedTuple):
    """New tokens of a sequence, to run after those in its cache.

    Embeddings [S, C], position ids [A, S] of A axes, and what is added to the hidden states after the first L layers [L, S, C];
    None adds nothing.
    """

    cache: Any
    embeds: Array
    positions: npt.NDArray[np.int64]
    planes: Array | None = None


class AnyDecoder(Protocol):
    """The decoder of a bundle, which makes caches of its own and runs on no others; `ort/decoder.py` says what each does.

    Attributes:
        reduces: whether a prompt with an image must go through `prefill`, into an empty cache.
        dtype: of embeddings and caches.
        max_batch: how many sequences one run takes; more are run in several.
    """

    reduces: bool
    dtype: np.dtype[Any]
    max_batch: int

    def new_cache(self) -> Cache:
        """An empty cache."""
        ...

    def close(self) -> None:
        """Keep nothing in memory for the sake of caches, which live on and run on another decoder of the bundle."""
        ...

    def step(
        self, steps: Sequence[Step], rows: Literal["last", "all"] = "last"
    ) -> list[npt.NDArray[np.float32]]:
        """Logits of each sequence, [V] after its last token or [S, V] after all; each cache grows by its tokens, or none does."""
        ...

    def prefill(
        self,
        embeds: Array,
        positions: npt.NDArray[np.int64],
        visual_rows: npt.NDArray[np.int64],
        planes: Array | None = None,
    ) -> tuple[npt.NDArray[np.float32], Cache, npt.NDArray[np.int64]]:
        """Logits [V], cache and kept tokens [K] of a prompt [S, C] at positions [A, S] with one image in rows [N], reduced on the way."""
        ...


class Graphs(Protocol):
    """The graphs of one bundle, as a backend opens them."""

    def require_memory(self, steps: Sequence[Sequence[str]], *, low_memory: bool) -> None:
        """Refuse graphs that will not fit into memory.

        Args:
            steps: names of the graphs that each step needs.
            low_memory: whether the graphs of one step alone will be in memory together, or all.

        Raises:
            ConfigError: how much is needed, how much there is, and what needs less.
        """
        ...

    def session(self, name: str) -> Session:
        """A graph that keeps nothing from run to run.

        Raises:
            BundleError: its file is not the one that was built.
            EngineError: it cannot be loaded.
        """
        ...

    def embedding(self) -> Session:
        """The graph that looks up embeddings: in host memory, for a few rows gain nothing from a GPU that is short of memory."""
        ...

    def decoder(self) -> AnyDecoder:
        """The decoder, of one graph or two; errors as of `session`."""
        ...


class TimedSession(Session, Protocol):
    """A session that writes down the time of every node."""

    def end_profiling(self) -> str:
        """The file of the times; nothing is timed after it."""
        ...


def _no_bytes(manifest: Manifest, names: Sequence[str]) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A way to run bundles. `backends/<name>.py` ends in one; the library that it runs on is imported when it is used.

    Attributes:
        name: as users give it, that of its file.
        summary: one line for `fico list backends`.
        rank: `auto` takes the backend with the highest of those that can run a bundle.
        problem: (folder, manifest) → why it cannot run a bundle on this machine, with a fix; None where it can.
        open: (folder, manifest, threads) → the bundle's graphs, ready to be loaded; raises FicoError where they cannot be.
        engines_of: the library whose engines it runs, as build.json says it; None for a backend that runs the graphs themselves.
        on_gpu: whether it takes a GPU's memory.
        host_bytes: (manifest, names of graphs) → host memory that they take at most; none where the device's own library refuses.
        open_timed: (file of a graph, threads, beginning of the path of the file of times) → a session whose nodes are timed; None
            where the time of a node says nothing.
    """

    name: str
    summary: str
    rank: int
    problem: Callable[[Path, Manifest], FicoError | None]
    open: Callable[[Path, Manifest, int], Graphs]
    engines_of: Runtime | None = None
    on_gpu: bool = False
    host_bytes: Callable[[Manifest, Sequence[str]], int] = _no_bytes
    open_timed: Callable[[Path, int, Path], TimedSession] | None = None


def loading_steps(manifest: Manifest) -> list[list[str]]:
    """Names of the graphs to load, in groups: those of one step, which are needed together."""
    names = [*manifest.graphs]
    decoder = [name for name in names if name in graph_names.DECODERS]
    by_rows = [graph_names.EMBEDDING] if manifest.embedding else []
    return [decoder, *([name] for name in names if name not in (*decoder, *by_rows))]


def require_rows(filled: int, count: int, rows: int) -> None:
    """Refuse tokens that a static cache has no room for.

    Raises:
        InputError: `count` more than the `filled` are more than its `rows`.
    """
    if filled + count > rows:
        raise InputError(
            f"{filled} tokens and {count} more; this bundle's KV cache has {rows} rows",
            fix="shorten the prompt, start a new conversation, or export with a larger --max-context or a smaller --keep",
        )


def visual_input(graph: Graph, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """What tells `decoder_prefill` where an image's visual tokens stand: `visual_rows` [1, N].

    Bundles that were exported before take `visual_start` [1], the first row of one run.

    Args:
        graph: as the manifest has it.
        rows: [N] of the prompt, ascending.

    Raises:
        BundleError: the graph takes one run, and the rows are none.
        InputError: the graph takes another number of visual tokens.
    """
    shapes = graph.shapes()
    if graph_names.VISUAL_ROWS in shapes:
        if len(rows) != (count := shapes[graph_names.VISUAL_ROWS][1]):
            raise InputError(
                f"{len(rows)} visual tokens in the prompt; this bundle's decoder reduces {count}",
                fix="encode the image with the bundle that is to answer",
            )
        return {graph_names.VISUAL_ROWS: rows[None]}
    if (np.diff(rows) != 1).any():
        raise BundleError(
            f"{graph.file} takes {graph_names.VISUAL_START}, an image's visual tokens in one run, and this prompt has others between them",
            fix="export the bundle again",
        )
    return {graph_names.VISUAL_START: rows[:1]}


def present_of(name: str) -> str:
    """The output that holds what follows an input `past_key_values.…`."""
    return name.replace("past_key_values.", "present.")
