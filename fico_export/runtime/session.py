"""What a bundle's answers need of whatever runs its graphs: ONNX Runtime, or engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fico_export.runtime.cache import Array


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


class AnyDecoder(Protocol):
    """The decoder of a bundle, which makes caches of its own and runs on no others; `decoder.Decoder` says what each does."""

    reduces: bool
    dtype: np.dtype[Any]

    def new_cache(self) -> Cache:
        """An empty cache."""
        ...

    def close(self) -> None:
        """Keep nothing in memory for the sake of caches, which live on and run on another decoder of the bundle."""
        ...

    def append(self, cache: Any, embeds: Array, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits [V] after new tokens [S, C] at positions [S], by which the cache grows."""
        ...

    def prefill(
        self, embeds: Array, positions: Sequence[int], visual_start: int
    ) -> tuple[npt.NDArray[np.float32], Cache, npt.NDArray[np.int64]]:
        """Logits [V], cache and kept tokens [K] of a prompt with one picture, whose tokens are reduced on the way."""
        ...
