"""What in a graph a target's parser would refuse, found before anything is built.

A parser that is newer than the target's own proves nothing for it, so each target has lists of its own: see
`devices/targets` and `devices/parsers`. Nothing is run, and weights stay on disk but for quantisation's scales and
zero-points.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from fico_export.devices import parsers, targets
from fico_export.devices.nvidia import of_parser
from fico_export.devices.parsers import Rule
from fico_export.devices.targets import Target
from fico_export.errors import ConfigError

# Operators whose outputs' shapes follow from values, and what serves in their place.
_DATA_DEPENDENT = {
    "Compress": "gather with the indices of a TopK of constant K",
    "If": "compute both and choose with Where",
    "Loop": "use Scan, or unroll it",
    "NonMaxSuppression": "select with a TopK of constant K",
    "NonZero": "select with a TopK of constant K",
    "Unique": "select with a TopK of constant K",
}
# Operators whose outputs' shapes follow from the values of these inputs.
_SHAPE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2),
    "Split": (1,),
    "Tile": (1,),
}


@dataclass(frozen=True)
class Violation:
    """Something that a target refuses.

    Attributes:
        kind: node or tensor.
        name: of the node or the tensor.
        what: the node's operator, with its domain unless that is the standard one, or the tensor's type.
        problem: completes the sentence that starts with `what`.
        since: the first versions that take it, such as `TensorRT 10.14`; empty where none is known.
        fix: what to write instead, or which target takes it.
    """

    kind: Literal["node", "tensor"]
    name: str
    what: str
    problem: str
    since: str
    fix: str

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.kind} {self.name!r}: {self.what} {self.problem}"


def read(path: Path) -> ir.Model:
    """A graph from a file, with the types of its tensors as far as they can be inferred; weights stay on disk.

    Raises:
        ConfigError: it is no ONNX file.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
        model = ir.from_proto(proto)
    except Exception as error:  # protobuf and onnx raise classes without a common base
        raise ConfigError(
            f"{path} cannot be read as an ONNX graph: {error}",
            fix="give an .onnx file or the folder of a bundle",
        ) from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def lint(model: ir.Model, target: Target, *, also: Set[str] = frozenset()) -> list[Violation]:
    """Everything in a graph that a target's parser refuses.

    Args:
        model: a graph, whose external data can be read; types of tensors are judged where they are known.
        target: whose operators, limits, rules and types hold.
        also: operators that are allowed beside the target's, `domain::Operator` for one of another domain.

    Returns:
        The violations, in the order of the nodes; none for a graph that passes.
    """
    found = [v for node in model.graph.all_nodes() for v in _of_node(node, target, also)]
    if target.parser is not None:
        found += [*_of_types(model, target), *_of_shapes(model)]
    return found


def _of_node(node: ir.Node, target: Target, also: Set[str]) -> Iterator[Violation]:
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    if operator in also:
        return
    if not node.domain and node.op_type in _DATA_DEPENDENT:
        yield _violation(node, "has a data-dependent shape", _DATA_DEPENDENT[node.op_type])
    elif node.domain:
        fix = "write it with standard operators: a parser needs a plugin for another domain"
        yield _violation(node, f"is not in the operators of {target.name}, which are standard ones", fix)
    elif node.op_type not in target.operators:
        yield _missing(node, target)
    elif node.op_type == "TopK" and not _topk_fits(node, target.limits.topk):
        most = target.limits.topk
        yield _violation(node, f"needs a constant K of at most {most}", f"select {most} or fewer")
    for rule in target.rules:
        if not node.domain and node.op_type in rule.operators and _breaks(rule, node):
            yield _violation(
                node, f"{rule.says} on {target.name}{_given(rule, node)}", rule.fix, _lifted(rule)
            )


def _violation(node: ir.Node, problem: str, fix: str, since: str = "") -> Violation:
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    return Violation("node", node.name or "", operator, problem, since, fix)


def _missing(node: ir.Node, target: Target) -> Violation:
    later = parsers.table().later.get(node.op_type)
    since = str(later) if later else ""
    others = targets.with_operator(node.op_type)
    ways = [later.instead] if later else ["write it with operators that the target has"]
    ways += [f"choose --target {' or '.join(others)}"] if others else []
    first = f" (first in {since})" if since else ""
    return _violation(node, f"is not in the operators of {target.name}{first}", ", or ".join(ways), since)


def _lifted(rule: Rule) -> str:
    return ", ".join(f"{of_parser(runtime).name} {version}" for runtime, version in rule.until.items())


def _given(rule: Rule, node: ir.Node) -> str:
    attribute = node.attributes.get(rule.attribute or "")
    if attribute is None:
        return ""
    value = attribute.value.decode() if isinstance(attribute.value, bytes) else attribute.value
    return f" ({rule.attribute} = {value!r})"


def _topk_fits(node: ir.Node, most: int) -> bool:
    k = _constant(_input(node, 1))
    return k is not None and int(k.item()) <= most


def _breaks(rule: Rule, node: ir.Node) -> bool:
    """Whether a node does what a rule forbids. What is not known is not held against it."""
    if rule.when is not None and _dtype(_input(node, 0)) != rule.when:
        return False
    if rule.attribute is not None:
        return _breaks_attribute(rule, node)
    if rule.outputs is not None:
        return any(value.name for value in node.outputs[rule.outputs :])
    if rule.in_place:
        cache, updated = _input(node, 0), node.outputs[0]
        return cache is None or not cache.is_graph_input() or not updated.is_graph_output()
    value = _input(node, rule.input or 0)
    if rule.absent or rule.given:
        return (value is not None) == rule.absent
    if value is None:
        return False
    if rule.types is not None:
        return _dtype(value) not in (None, *rule.types)
    if rule.even:
        last = list(value.shape or [])[-1:]
        return any(isinstance(size, int) and size % 2 == 1 for size in last)
    array = _constant(value)
    if rule.constant or array is None:
        return rule.constant and array is None
    return bool(np.any(array != 0) if rule.zero else np.any(array <= 0))


def _breaks_attribute(rule: Rule, node: ir.Node) -> bool:
    attribute = node.attributes.get(rule.attribute or "")
    if attribute is None:
        return False
    value = attribute.value.decode() if isinstance(attribute.value, bytes) else attribute.value
    return rule.without in value if rule.without is not None else value not in (rule.values or [])


def _of_types(model: ir.Model, target: Target) -> Iterator[Violation]:
    """A violation for each tensor of a type that the target refuses."""
    for value in _tensors(model):
        since = target.refused_types.get(_dtype(value) or "")
        if since is not None:
            first = f" (first in {since})" if str(since) else ": no version takes it"
            problem = f"is no type of tensor for {target.name}{first}"
            yield Violation(
                "tensor", value.name or "", _dtype(value) or "", problem, str(since), since.instead
            )


def _tensors(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.inputs
        yield from graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from node.outputs


def _of_shapes(model: ir.Model) -> Iterator[Violation]:
    """A violation for each node whose output's shape follows from what was computed of a floating-point tensor.

    A parser follows integers from shapes, constants and integer inputs to a shape, not what came from a score.
    """
    computed: set[ir.Value] = set()

    def depends(value: ir.Value | None) -> bool:
        if value is None:
            return False
        given = value.producer() is None and value.const_value is None
        return value in computed or (given and value.dtype is not None and value.dtype.is_floating_point())

    for node in model.graph.all_nodes():
        places = _SHAPE_INPUTS.get(node.op_type, ()) if not node.domain else ()
        for value in filter(depends, (_input(node, place) for place in places)):
            fix = "make its shape a constant, or compute it from shapes"
            name = value.name if value else ""
            yield _violation(node, f"has a data-dependent shape, by its input {name!r}", fix)
        if node.op_type not in ("Shape", "Size") and any(map(depends, node.inputs)):
            computed.update(node.outputs)


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _dtype(value: ir.Value | None) -> str | None:
    return None if value is None or value.dtype is None else value.dtype.name


def _constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The value of an initialiser or of a Constant, or None."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
