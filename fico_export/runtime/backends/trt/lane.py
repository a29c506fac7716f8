"""A context of a decoder's engine, with the memory it reads and writes, and the CUDA graph of its step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fico_export.runtime.backends.base import present_of
from fico_export.runtime.backends.trt.cuda import CapturedGraph, DeviceMemory, Staged
from fico_export.runtime.backends.trt.engine import Context, Engine
from fico_export.runtime.backends.trt.placement import Layout, back, last_rows, placed
from fico_export.runtime.backends.trt.profiles import Shape


class Lane:
    """Runs a decoder's engine on a cache.

    What a step takes and gives goes through pinned memory at fixed addresses, and the copies to and from the device are part of
    the step: a captured graph is then the whole of it, and only values change from token to token, that of past_lengths among
    them. The new rows of the form `external` go to another place at every step, so they are placed after the graph; see
    `placement` for why that is one copy.

    Args:
        engine: of the decoder.
        profile: of it.
        cache: how a cache lies in its memory.
        past: the engine's inputs that are the cache, in order; none of a prefill that starts it.
        present: its outputs that hold the cache or new rows of it, in order.
        graphs: whether to run the step as a CUDA graph once it has run; for one shape only.
    """

    def __init__(
        self,
        engine: Engine,
        profile: int,
        cache: Layout,
        past: Sequence[str],
        present: Sequence[str],
        *,
        graphs: bool,
    ) -> None:
        self._engine, self._stream = engine, engine.device.stream
        self._context = Context(engine, profile, graphs=graphs)
        self._cache, self._past, self._present = cache, past, present
        self._in_place = bool(past) and _in_place(engine, past)
        self._results = [name for name in engine.outputs if name not in present]
        self._graphs_wanted = graphs
        self._captured: dict[int, CapturedGraph] = {}  # by the address of the cache
        self._warm: set[int] = set()
        self._bound: int | None = None
        self._shapes: dict[str, Shape] = {}
        self._staged: dict[str, Staged] = {}
        self._sizes: dict[str, int] = {}
        self._new = replace(cache, rows=())
        self._rows: DeviceMemory | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """How many rows of each key and value the last run put into the cache, where it did not write in place."""
        return self._new.rows

    def run(
        self,
        memory: DeviceMemory,
        feeds: Mapping[str, npt.NDArray[Any]],
        at: Mapping[int, Sequence[int]],
        crowded: Sequence[int] = (),
    ) -> dict[str, npt.NDArray[Any]]:
        """One step.

        Args:
            memory: of the caches of a batch.
            feeds: the inputs beside the cache.
            at: of each sequence that takes part, the row of each key and value from which new ones go.
            crowded: sequences without part in it that an engine which writes in place writes over the last rows of.

        Returns:
            The outputs beside the cache, by name.

        Raises:
            EngineError: the engine does not take the shapes, or running failed.
        """
        arrays = {name: np.asarray(a, self._engine.dtype(name)) for name, a in feeds.items()}
        # A step that was interrupted may still read what is written now.
        self._stream.wait()
        self._set_shapes({name: array.shape for name, array in arrays.items()})
        for name, array in arrays.items():
            self._staged[name].write(array)
        self._bind_cache(memory)
        with self._spared(memory, crowded if self._in_place else (), arrays["inputs_embeds"].shape[1]):
            self._go(memory.address)
        if self._rows is not None:
            for slot, rows in at.items():
                self._stream.place(memory, self._rows, placed(self._new, self._cache, rows, slot))
        self._stream.wait()
        return {
            name: self._staged[name].read(self._engine.dtype(name), self._context.shape(name))
            for name in self._results
        }

    @contextmanager
    def _spared(self, memory: DeviceMemory, slots: Sequence[int], count: int) -> Iterator[None]:
        """Put back the last rows of these sequences at the end of the block."""
        if not slots:
            yield
            return
        copies = last_rows(self._cache, slots, count)
        aside = DeviceMemory(sum(copy.width * copy.height for copy in copies))
        self._stream.place(aside, memory, copies)
        try:
            yield
        finally:
            self._stream.place(memory, aside, [back(copy) for copy in copies])
            self._stream.wait()  # until then what is aside is needed

    def _set_shapes(self, shapes: dict[str, Shape]) -> None:
        if shapes == self._shapes:
            return
        context, engine = self._context, self._engine
        self._shapes = {}  # until all is bound: where that fails, the next step begins anew
        context.set_shapes(shapes)
        self._captured.clear()
        self._warm.clear()
        for name in (*shapes, *self._results):
            self._sizes[name] = int(np.prod(context.shape(name))) * engine.dtype(name).itemsize
            if name not in self._staged:
                self._staged[name] = Staged(self._sizes[name])
            self._staged[name].grow(self._sizes[name])
            context.bind(name, self._staged[name])
        if not self._in_place:
            rows = tuple(context.shape(name)[2] for name in self._present)
            self._new = replace(self._cache, rows=rows)
            if self._rows is None or self._rows.size < self._new.size:
                self._rows = None  # given back before more is taken
                self._rows = DeviceMemory(self._new.size)
            for name, offset in zip(self._present, self._new.offsets, strict=False):
                context.bind(name, self._rows.address + offset)
        self._shapes = shapes

    def _bind_cache(self, memory: DeviceMemory) -> None:
        if memory.address == self._bound:
            return
        self._bound = None
        for name, offset in zip(self._past, self._cache.offsets, strict=False):
            self._context.bind(name, memory.address + offset)
            if self._in_place:
                self._context.bind(present_of(name), memory.address + offset)
        self._bound = memory.address

    def _go(self, address: int) -> None:
        """Launch the step's graph; capture it first where the step has run once with these shapes and addresses.

        TensorRT does at the first run what a change of shapes left to do, and that cannot be captured.
        """
        graph = self._captured.get(address)
        if graph is None and self._graphs_wanted and self._context.capturable and address in self._warm:
            graph = self._stream.capture(self._enqueue)
            if graph is None:
                self._graphs_wanted = False
            else:
                self._captured[address] = graph
        if graph is not None:
            self._stream.launch(graph)
        else:
            self._enqueue()
            self._warm.add(address)

    def _enqueue(self) -> None:
        for name in self._shapes:
            self._stream.to_device(self._staged[name], self._sizes[name])
        self._context.enqueue()
        for name in self._results:
            self._stream.to_host(self._staged[name], self._sizes[name])


def _in_place(engine: Engine, past: Sequence[str]) -> bool:
    """Whether the engine writes into the cache: then past and present are of one shape, where new rows are fewer."""
    return all(
        engine.input_of(present_of(name)) == name or engine.shapes[name] == engine.shapes[present_of(name)]
        for name in past
    )
