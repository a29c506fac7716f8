"""Statistics of a bundle's graphs: nodes, operators, weights by type, FLOPs. Reads the graphs, not the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from fico_export.bundle.manifest import Manifest
from fico_export.errors import BundleError
from fico_export.exporter.cost import cost, count, of_reducer


@dataclass(frozen=True)
class Statistics:
    """Of one graph.

    Attributes:
        name: as in the manifest.
        nodes: those inside a Scan counted once.
        reducer_nodes: of these, the reducer's own.
        operators: nodes by operator, most frequent first.
        weight_bytes: bytes of weights by type.
        flops: of one image in a graph of fixed shapes; else of the products with weights, for one token.
        per_token: whether `flops` is the latter.
    """

    name: str
    nodes: int
    reducer_nodes: int
    operators: dict[str, int]
    weight_bytes: dict[str, int]
    flops: int
    per_token: bool


def statistics(folder: Path, manifest: Manifest) -> list[Statistics]:
    """Of every graph of a bundle.

    Raises:
        BundleError: a graph cannot be read.
    """
    return [_of_graph(folder / manifest.graph(name).file, name) for name in manifest.graphs]


def _of_graph(path: Path, name: str) -> Statistics:
    try:
        graph = ir.load(path).graph
    except Exception as error:  # protobuf and onnx_ir raise whatever a damaged file makes them raise
        raise BundleError(f"cannot read {path}: {error}", fix="export or copy the bundle again") from error
    weights: Counter[str] = Counter()
    for value in graph.initializers.values():
        if value.const_value is not None:
            weights[value.const_value.dtype.name] += value.const_value.nbytes
    fixed = all(isinstance(d, int) for value in graph.inputs for d in value.shape or ())
    return Statistics(
        name=name,
        nodes=count(graph),
        reducer_nodes=count(of_reducer(graph)),
        operators=dict(Counter(node.op_type for node in graph).most_common()),
        weight_bytes=dict(weights.most_common()),
        flops=cost(graph).flops if fixed else sum(map(_products_with_weights, graph)),
        per_token=not fixed,
    )


def _products_with_weights(node: ir.Node) -> int:
    """Two for each weight that one token is multiplied with."""
    if node.op_type == "MatMulNBits":
        return 2 * node.attributes["K"].as_int() * node.attributes["N"].as_int()
    if node.op_type not in ("MatMul", "Gemm") or (right := node.inputs[1]) is None or right.shape is None:
        return 0
    sizes: Iterable[int | ir.SymbolicDim] = right.shape
    fixed = [size for size in sizes if isinstance(size, int)]
    # A product of activations has a free axis, or one for batch and heads.
    return 2 * fixed[0] * fixed[1] if len(fixed) == len(right.shape) == 2 else 0
