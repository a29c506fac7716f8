"""What a graph costs: its nodes, and the FLOPs of its matrix products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir


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
