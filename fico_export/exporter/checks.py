"""Rules that every exported graph must keep, checked on the files as written."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import shape_inference

from fico_export.devices.targets import Int4, Target
from fico_export.errors import ExportError

_REPORT = (
    "this is a bug of the exporter or of the method's file: please file an issue with the command you ran"
)
_QUANTIZED = {"dequantize": "DequantizeLinear", "matmul_nbits": "com.microsoft::MatMulNBits"}
_DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique", "Loop", "If"})


def check_graph(path: Path, target: Target, *, static: bool, quantized: bool = False) -> None:
    """Check one ONNX file against a target.

    Args:
        path: of the .onnx file, its external data beside it.
        target: whose allow-list and limits hold.
        static: whether every dimension must be a number.
        quantized: whether weights of it are, which allows the target's operator for them and asks for its opset.

    Raises:
        ExportError: naming the node or tensor that breaks a rule.
    """
    model = ir.load(path)
    int4 = target.int4 if quantized else None
    _check_versions(model, target, int4)
    _check_operators(model, target, target.operators | ({_QUANTIZED[int4.form]} if int4 else set()))
    inferred = _infer_shapes(path)
    if static:
        _check_static(inferred)


def _check_versions(model: ir.Model, target: Target, int4: Int4 | None) -> None:
    opset = int4.opset if int4 else target.opset
    contrib = {"com.microsoft": 1} if int4 and int4.form == "matmul_nbits" else {}
    if model.opset_imports != {"": opset, **contrib} or model.ir_version != target.ir_version:
        raise ExportError(
            f"graph has opsets {model.opset_imports} and IR {model.ir_version}; "
            f"{target.name} has opset {opset} and IR {target.ir_version}",
            mend=_REPORT,
        )


def _check_operators(model: ir.Model, target: Target, allowed: Set[str]) -> None:
    for node in model.graph.all_nodes():
        if node.op_type in _DATA_DEPENDENT:
            raise ExportError(f"node {node.name!r}: {node.op_type} has a data-dependent shape", mend=_REPORT)
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        if operator not in allowed:
            raise ExportError(
                f"node {node.name!r}: {operator} is not in the operators of {target.name}", mend=_REPORT
            )
        if node.op_type == "TopK":
            k = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
            if k is None or int(k.numpy().item()) > target.limits.topk:
                raise ExportError(
                    f"node {node.name!r}: TopK needs a constant K of at most {target.limits.topk}",
                    mend=_REPORT,
                )


def _infer_shapes(path: Path) -> onnx.ModelProto:
    """Full check with strict shape inference; external data stays on disk."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        proto = onnx.load(str(path), load_external_data=False)
        return shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is not valid ONNX: {error}", mend=_REPORT) from error


def _check_static(model: onnx.ModelProto) -> None:
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        shape = value.type.tensor_type.shape
        if any(not d.HasField("dim_value") for d in shape.dim):
            raise ExportError(f"tensor {value.name!r} of the vision graph has a free dimension", mend=_REPORT)
    known = {v.name for v in (*graph.input, *graph.output, *graph.value_info)} | {
        i.name for i in graph.initializer
    }
    unknown = [name for node in graph.node for name in node.output if name and name not in known]
    if unknown:
        raise ExportError(f"tensor {unknown[0]!r} of the vision graph has no inferred shape", mend=_REPORT)
