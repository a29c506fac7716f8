"""From a torch module without weights to an ONNX graph without weights.

Modules are traced with parameters that take no memory; `weights.py` binds the checkpoint's tensors afterwards.
"""

from __future__ import annotations

import ast
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules
from torch import fx, nn
from torch._dynamo import config as dynamo
from torch.onnx._internal.exporter._registration import ONNXRegistry

from fico_export.errors import ExportError, FicoError
from fico_export.models.ports import GraphModule, Port, Ports

ModuleT = TypeVar("ModuleT", bound=nn.Module)


# Those of onnxscript's default rules that find something in our graphs: all of them together take several times as long.
_RULES = (
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.squeeze_reshape_1d_rule,
    rules.mul_by_1_rule,
    rules.remove_optional_bias_from_conv_rule,
)


# How torch's operators become ONNX's, of each opset: to make the table anew for every graph takes a fifth of the time.
_operators = cache(ONNXRegistry.from_torchlib)


def weightless(make: Callable[[], ModuleT]) -> ModuleT:
    """The module that `make` builds, each parameter a single zero expanded to its shape.

    Not the meta device: constants that a module creates while it is traced must be real.
    """
    with torch.device("meta"):
        module = make()
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            empty = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(owner, name, nn.Parameter(empty, requires_grad=False))
    return module.eval()


def trace(make: Callable[[], GraphModule], opset: int) -> ir.Model:
    """The graph of the module that `make` builds, without weights; the initializers keep their parameters' names.

    Raises:
        ExportError: torch's exporter failed.
    """
    module = weightless(make)
    ports = module.ports()
    try:
        with _quick_and_quiet(symbolic=any(port.free for port in ports.flat)), torch.no_grad():
            program = torch.export.export(
                module,
                _for_each(ports, ports.example),
                dynamic_shapes=_dynamic(ports),
                strict=False,
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=[port.name for port in ports.flat],
                output_names=[port.name for port in ports.outputs],
            )
    except FicoError:
        raise
    except Exception as error:
        raise ExportError(
            f"torch could not export {type(module).__name__}: {error}",
            fix="run again with --debug and file an issue with the trace and your torch version",
        ) from error
    assert exported is not None
    graph = exported.model
    name_nodes(graph)
    _name_axes(graph.graph.inputs, ports.flat)
    _name_axes(graph.graph.outputs, ports.outputs)
    _drop_unread_outputs(graph)
    return graph


@contextmanager
def _quick_and_quiet(symbolic: bool) -> Iterator[None]:
    """For the time of the block, torch's exporter keeps no Python stack of every node and says nothing of its own internals.

    The stacks are dropped by `name_nodes` anyway, and take a fifth of the time. Its table of operators is made once for all
    graphs. Nor is garbage looked for among all that is imported, which takes 4 to 15 %. What it remembers of an operator's shapes
    costs more than it spares where axes are `symbolic`: 15 %.
    """
    collects = gc.isenabled()
    gc.disable()
    stacks, table = fx.config.do_not_emit_stack_traces, vars(ONNXRegistry)["from_torchlib"]
    ONNXRegistry.from_torchlib = staticmethod(_operators)  # type: ignore[method-assign]
    fx.config.do_not_emit_stack_traces = True
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), dynamo.patch(fake_tensor_cache_enabled=not symbolic):
            warnings.simplefilter("ignore")  # which nobody here can fix
            yield
    finally:
        fx.config.do_not_emit_stack_traces = stacks
        ONNXRegistry.from_torchlib = table  # type: ignore[method-assign]
        if collects:
            gc.enable()


def name_nodes(model: ir.Model) -> None:
    """Name each node by the module it came from, so that a profile of an engine can be read by stages.

    Also drops the tracer's metadata, which holds source lines and the paths of this machine.
    """
    for i, node in enumerate(model.graph.all_nodes()):
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']"))
        scope = next((s for s in reversed(scopes[:-1]) if s and not s.startswith("_")), "graph")
        node.name = f"{scope}/{node.op_type}_{i}"
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def simplify(model: ir.Model) -> None:
    """Fold constants, join what undoes itself, and drop what nothing reads; the checkpoint's tensors are not read."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    shapes = [value.shape for value in model.graph.outputs]
    with _weights_hidden(model.graph):
        common.InlinePass()(model)
        for _ in range(2):
            optimizer.fold_constants(
                model, onnx_shape_inference=True, input_size_limit=4096, output_size_limit=1 << 20
            )
            rewriter.rewrite(model, _RULES)
        for tidy in (
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.OutputFixPass(),
            common.NameFixPass(),
        ):
            tidy(model)
    _name_rewritten(model.graph)
    for value, shape in zip(model.graph.outputs, shapes, strict=True):
        value.shape = shape  # its shape inference puts the tracer's symbols in place of the axes' names


def _name_rewritten(graph: ir.Graph) -> None:
    """Give what a rewrite has put in the module of what reads it, or else of what it reads: the rules name none."""
    for node in reversed(list(graph)):
        if node.name and "/" not in node.name:
            readers = [reader for reader, _ in node.outputs[0].uses()]
            made = [value.producer() for value in node.inputs if value is not None]
            near = next((n.name for n in (*readers, *made) if n and n.name and "/" in n.name), "graph/")
            node.name = f"{near.rpartition('/')[0]}/{node.name}"


@contextmanager
def _weights_hidden(graph: ir.Graph) -> Iterator[None]:
    """For the time of the block, what is bound to the checkpoint is a value that nobody knows."""
    lazy = (ir.LazyTensor, ir.ExternalTensor)
    hidden = [(v, v.const_value) for v in graph.initializers.values() if isinstance(v.const_value, lazy)]
    for value, _ in hidden:
        value.const_value = None
    try:
        yield
    finally:
        for value, tensor in hidden:
            value.const_value = tensor


def _drop_unread_outputs(model: ir.Model) -> None:
    """Leave out the optional outputs of ONNX Runtime's own operators that nothing reads, or it computes them."""
    kept = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        for output in node.outputs if node.domain else ():
            if not output.uses() and output not in kept:
                output.name, output.shape, output.type = "", None, None


def _for_each(ports: Ports, of: Callable[[Port], Any]) -> tuple[Any, ...]:
    """Something of every input, in the form of the arguments of `forward`."""
    return tuple(
        [of(port) for port in given] if isinstance(given, tuple) else of(given) for given in ports.inputs
    )


def _dynamic(ports: Ports) -> tuple[Any, ...] | None:
    """Axis names → torch.export's symbols, one for each name: fewer unknowns trace several times faster."""
    dims: dict[str, Any] = {}

    def symbols(port: Port) -> dict[int, Any] | None:
        for name in port.free.values():
            dims.setdefault(name, torch.export.Dim(name.replace(".", "_"), min=ports.least.get(name)))
        return {axis: dims[name] for axis, name in port.free.items()} or None

    found = _for_each(ports, symbols)
    return found if dims else None


def _name_axes(values: Sequence[ir.Value], ports: Sequence[Port]) -> None:
    """Give the free axes of inputs or outputs their words instead of the tracer's symbols."""
    for value, port in zip(values, ports, strict=True):
        if port.free and value.shape is not None:
            value.shape = ir.Shape([port.free.get(i, d) for i, d in enumerate(value.shape)])
