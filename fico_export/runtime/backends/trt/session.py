"""An engine of a graph that keeps nothing between runs: the vision encoder, CLIP's text tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fico_export.runtime.backends.trt.cuda import Staged
from fico_export.runtime.backends.trt.engine import Context, Engine
from fico_export.runtime.backends.trt.profiles import Shape


class EngineSession:
    """Runs an engine as ONNX Runtime's session runs a graph.

    Args:
        engine: loaded.
        outputs: names of its outputs, in the order of the graph's.
    """

    def __init__(self, engine: Engine, outputs: Sequence[str]) -> None:
        self._engine, self._outputs = engine, list(outputs)
        self._contexts: dict[int, Context] = {}
        self._staged: dict[str, Staged] = {}

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, npt.NDArray[Any]]
    ) -> list[npt.NDArray[Any]]:
        """Outputs by name, or all in the graph's order, of inputs by name.

        Raises:
            EngineError: an input is of a shape that the engine does not take, or running failed.
        """
        engine, stream = self._engine, self._engine.device.stream
        feeds = {name: np.asarray(a, engine.dtype(name)) for name, a in input_feed.items()}
        shapes = {name: array.shape for name, array in feeds.items()}
        stream.wait()  # a run that was interrupted may still read what is written now
        context = self._context(shapes)
        for name, array in feeds.items():
            staged = self._stage(name, array.nbytes)
            staged.write(array)
            stream.to_device(staged, array.nbytes)
            context.bind(name, staged)
        found = {name: context.shape(name) for name in self._outputs}
        sizes = {name: _bytes(shape, engine.dtype(name)) for name, shape in found.items()}
        for name in self._outputs:
            context.bind(name, self._stage(name, sizes[name]))
        context.enqueue()
        wanted = self._outputs if output_names is None else list(output_names)
        for name in wanted:
            stream.to_host(self._staged[name], sizes[name])
        stream.wait()
        return [self._staged[name].read(engine.dtype(name), found[name]) for name in wanted]

    def _context(self, shapes: Mapping[str, Shape]) -> Context:
        """The context of the profile that takes these shapes, made when it is first needed."""
        profile = self._engine.profile_of(shapes)
        if profile not in self._contexts:
            self._contexts[profile] = Context(self._engine, profile)
        context = self._contexts[profile]
        context.set_shapes(shapes)
        return context

    def _stage(self, name: str, size: int) -> Staged:
        """Memory of a tensor, which stays from run to run."""
        if name not in self._staged:
            self._staged[name] = Staged(size)
        self._staged[name].grow(size)
        return self._staged[name]


def _bytes(shape: Shape, dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape)) * dtype.itemsize
