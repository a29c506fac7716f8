"""Decoders of many equal layers: a graph is traced with three of them, and the third is copied for the rest.

Layers that differ, because something is added after each of them, come before those three.

Tracing takes time for every layer, copying takes none. Why three: what the third layer takes of the second is what every
layer takes of the one before it, and what it shares with the second, every layer shares.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import count
from types import MappingProxyType

import onnx_ir as ir

from fico_export.errors import ExportError

TRACED = 3  # equal layers that a trace has

Images = dict[ir.Value, ir.Value]
NOBODY: Mapping[str, int] = MappingProxyType({})


def repeat_layers(
    model: ir.Model, stem: str, layers: int, traced: int = TRACED, readers: Mapping[str, int] = NOBODY
) -> None:
    """Give a graph that was traced with `traced` layers, of which the last three are equal, `layers` of them.

    Nodes of layer i are those named `<stem>.i…`, its weights, inputs and outputs those with `.i.` in their names.

    Args:
        model: as traced, without weights; changed in place.
        stem: where the layers are in the module, such as `language_model.layers`.
        layers: how many there are to be, at least as many as were traced.
        traced: layers that the graph has.
        readers: modules that read the layers' output not after the last → number of the layer after which they do, the last that was
            traced or one after it. In the trace all read what the last layer gives.

    Raises:
        ExportError: the last two layers are not alike.
    """
    graph, number = model.graph, traced - 1
    second, last = (_nodes(graph, stem, i) for i in (number - 1, number))
    follows = _require_alike(second, last, number)
    # What reads the last layer must read the new last layer.
    uses = [use for node in last for value in node.outputs for use in value.uses()]
    inside = set(last)
    tail = [(node, i) for node, i in uses if node not in inside]
    own = [
        value
        for value in (*graph.inputs, *graph.initializers.values())
        if f".{number}." in (value.name or "") and any(node in inside for node, _ in value.uses())
    ]
    outputs = [value for value in graph.outputs if f".{number}." in (value.name or "")]
    fresh = count()
    of_layers: dict[int, Images] = {}
    before: Images = {}  # values of the last layer → those of the layer before the copy; none: their own
    end = last[-1]
    for layer in range(traced, layers):
        images: Images = {value: _copied_own(graph, value, number, layer) for value in own}
        for node in last:
            copied = _copied_node(node, _reader(images, before, follows), number, layer, fresh)
            images.update(zip(node.outputs, copied.outputs, strict=True))
            graph.insert_after(end, copied)
            end = copied
        for value in outputs:
            images[value].name = _renamed(value, number, layer)
            graph.outputs.append(images[value])
        of_layers[layer] = before = images
    for node, i in tail:
        read = node.inputs[i]
        assert read is not None
        of = [
            layer for name, layer in readers.items() if re.match(rf"{re.escape(name)}[./]", node.name or "")
        ]
        node.replace_input_with(i, of_layers.get(of[0] if of else layers - 1, {}).get(read, read))


def _nodes(graph: ir.Graph, stem: str, layer: int) -> list[ir.Node]:
    start = re.compile(rf"{re.escape(stem)}\.{layer}[./]")
    return [node for node in graph if start.match(node.name or "")]


def _require_alike(first: list[ir.Node], second: list[ir.Node], number: int) -> Images:
    """What each value of one layer is in the next, which has the number `number`.

    Raises:
        ExportError: the layers do not do the same with what they read.
    """
    unlike = ExportError(
        "two layers of the decoder were traced to different graphs",
        fix="this is a bug of the exporter: please file an issue with the command you ran",
    )
    inside = {value for node in first for value in node.outputs}
    follows: Images = {}
    if len(first) != len(second) or not first:
        raise unlike
    for a, b in zip(first, second, strict=True):
        if (a.op_identifier(), _attributes(a), len(a.inputs)) != (
            b.op_identifier(),
            _attributes(b),
            len(b.inputs),
        ):
            raise unlike
        for x, y in zip(a.inputs, b.inputs, strict=True):
            if x is y:
                continue
            if x is None or y is None:
                raise unlike
            if x.producer() is None and (x.name or "").replace(f".{number - 1}.", f".{number}.") == y.name:
                continue
            # What the one takes of the layer before it must be what the next takes of the one.
            taken_on = x not in inside and x.producer() is not None and y in inside
            if not taken_on and follows.get(x) is not y:
                raise unlike
        follows.update(zip(a.outputs, b.outputs, strict=True))
    return follows


def _attributes(node: ir.Node) -> dict[str, object]:
    return {
        name: a.value.tobytes() if a.type is ir.AttributeType.TENSOR else a.value
        for name, a in node.attributes.items()
    }


def _reader(images: Images, before: Images, follows: Images) -> Callable[[ir.Value], ir.Value]:
    """What a copy reads for what the last layer reads: its own, that of the layer before it, or what all layers share."""

    def read(value: ir.Value) -> ir.Value:
        if value in images:
            return images[value]
        if value in follows:  # of the last layer but one, which stands for the layer before
            return before.get(follows[value], follows[value])
        return value

    return read


def _copied_output(value: ir.Value, end: str) -> ir.Value:
    """The output of a copied node; one without a name is left out of the node, and of its copy."""
    return ir.Value(name=value.name and value.name + end, shape=value.shape, type=value.type)


def _copied_node(
    node: ir.Node, read: Callable[[ir.Value], ir.Value], number: int, layer: int, fresh: count[int]
) -> ir.Node:
    outputs = [_copied_output(value, f".layer_{layer}_{next(fresh)}") for value in node.outputs]
    return ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else read(value) for value in node.inputs],
        list(node.attributes.values()),
        outputs=outputs,
        name=(node.name or "").replace(f".{number}", f".{layer}", 1),
    )


def _copied_own(graph: ir.Graph, value: ir.Value, number: int, layer: int) -> ir.Value:
    copied = ir.Value(name=_renamed(value, number, layer), shape=value.shape, type=value.type)
    if value.is_graph_input():
        graph.inputs.append(copied)
    else:
        copied.const_value = value.const_value
        graph.register_initializer(copied)
    return copied


def _renamed(value: ir.Value, number: int, layer: int) -> str:
    return (value.name or "").replace(f".{number}.", f".{layer}.", 1)
