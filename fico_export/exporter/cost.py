"""What a graph costs: its nodes, and the FLOPs of its matrix products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

_PRODUCTS = ("MatMul", "MatMulNBits", "Gemm", "Conv")


@dataclass(frozen=True)
class Cost:
    """Nodes, those inside a Scan counted once, and FLOPs: two a multiply-add, a Scan's times its turns."""

    nodes: int
    flops: int


def cost(nodes: Iterable[ir.Node]) -> Cost:
    """The sum over nodes, such as a graph; all their shapes must be known."""
    nodes = list(nodes)
    return Cost(count(nodes), sum(map(_flops, nodes)))


def count(nodes: Iterable[ir.Node]) -> int:
    """Nodes, those inside a Scan counted once; their shapes need not be known."""
    return sum(
        1 + (count(node.attributes["body"].as_graph()) if node.op_type == "Scan" else 0) for node in nodes
    )


def at_inputs(path: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> ir.Graph:
    """The graph of a file, with the shapes that ONNX Runtime found on these inputs at its matrix products."""
    model = onnx.load(path, load_external_data=False)
    ours = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    products = [node for node in model.graph.node if node.op_type in _PRODUCTS]
    wanted = dict.fromkeys(
        name for node in products for name in (*node.input[:2], *node.output) if name not in ours
    )
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    copy = path.with_name(f"counted-{path.name}")  # beside its external data
    onnx.save(model, copy)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy, options, providers=["CPUExecutionProvider"])
    copy.unlink()
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, dict(feeds)), strict=True))
    graph = ir.from_proto(onnx.load(path, load_external_data=False)).graph
    for value in (v for node in graph for v in (*node.inputs, *node.outputs) if v is not None):
        known = {**found, **feeds}.get(value.name or "")
        if known is not None:
            value.shape = ir.Shape(known.shape)
    return graph


def weight_bytes(graph: ir.Graph) -> tuple[int, int]:
    """Of the initializers: bytes of those made of a checkpoint's tensors, and of the other constants."""
    sizes = {True: 0, False: 0}
    for name, value in graph.initializers.items():
        assert value.shape is not None
        assert value.dtype is not None
        made = ".weight" in name or ".bias" in name or "_embedding" in name or name.startswith("zero_points.")
        sizes[made] += math.ceil(math.prod(value.shape.numpy()) * value.dtype.itemsize)
    return sizes[True], sizes[False]


def of_reducer(graph: ir.Graph) -> list[ir.Node]:
    """The reducer's own nodes of a vision or prefill graph: nodes are named after the module they come from."""
    return [node for node in graph if (node.name or "").startswith("reduce.")]


def _flops(node: ir.Node) -> int:
    if node.op_type == "Scan":
        turns = _shape(node.inputs[-1])[0]  # ours run over one sequence, their last input
        return turns * sum(map(_flops, node.attributes["body"].as_graph()))
    if node.op_type == "MatMulNBits":
        return 2 * math.prod(_shape(node.outputs[0])) * node.attributes["K"].as_int()
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return 0
    left, right, out = (_shape(value) for value in (*node.inputs[:2], node.outputs[0]))
    if node.op_type == "Conv":
        return 2 * math.prod(out) * math.prod(right[1:])
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int()
    return 2 * math.prod(out) * left[0 if transposed else -1]


def _shape(value: ir.Value | None) -> list[int]:
    assert value is not None
    assert value.shape is not None, f"the shape of {value.name} is not known"
    sizes = [d for d in value.shape if isinstance(d, int)]
    assert len(sizes) == len(value.shape), f"the shape of {value.name} has a free axis"
    return sizes
