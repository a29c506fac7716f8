"""The tensors that go into a module's graph and come out of it, declared once: names, shapes, dtypes.

Tracing, the names of free axes, the manifest and the documents' tables are made from a module's `ports()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# Examples of the free axes: any unequal numbers above 1, and sums where an axis is one.
_LENGTHS = {
    "batch_size": 2,
    "sequence_length": 3,
    "past_sequence_length": 5,
    "max_sequence_length": 5,
    "total_sequence_length": 8,
}


@dataclass(frozen=True)
class Port:
    """A tensor of a graph.

    Attributes:
        name: in the graph.
        axes: its shape, a number for a fixed axis and a name for a free one.
        dtype: of its numbers.
    """

    name: str
    axes: tuple[int | str, ...]
    dtype: torch.dtype = torch.int64

    @property
    def free(self) -> dict[int, str]:
        """Axis → its name, for the free ones."""
        return {axis: name for axis, name in enumerate(self.axes) if isinstance(name, str)}


Inputs = tuple[Port | tuple[Port, ...], ...]
"""Those of a graph, in the order of the module's `forward`; a tuple of ports is one argument that is a list of tensors."""


@dataclass(frozen=True)
class Ports:
    """All tensors of a graph.

    Attributes:
        inputs: what goes in.
        outputs: in the order of the graph.
        lengths: example lengths of free axes, where those of `_LENGTHS` will not do.
        least: smallest length of a free axis.
    """

    inputs: Inputs
    outputs: tuple[Port, ...]
    lengths: Mapping[str, int] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)

    @property
    def flat(self) -> tuple[Port, ...]:
        """The inputs in the order of the graph."""
        return tuple(
            port for given in self.inputs for port in (given if isinstance(given, tuple) else (given,))
        )

    def example(self, port: Port) -> Tensor:
        """Zeros of a port's shape, a tensor of its own: the tracer takes one that is given twice for one input."""
        lengths = {**_LENGTHS, **self.lengths}
        shape = [axis if isinstance(axis, int) else lengths[axis] for axis in port.axes]
        return torch.zeros(shape, dtype=port.dtype)


def fixed(inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> Ports:
    """Ports without a free axis, of the shapes that example inputs have."""
    given = (Port(name, tuple(tensor.shape), tensor.dtype) for name, tensor in inputs.items())
    return Ports(tuple(given), tuple(Port(name, ()) for name in outputs))


class GraphModule(nn.Module):
    """A module that becomes a graph."""

    def ports(self) -> Ports:
        """The tensors of its graph."""
        raise NotImplementedError
