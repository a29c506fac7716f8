"""Rules that every exported graph must keep, checked on the files as written."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import shape_inference

from fico_export.devices.targets import Target
from fico_export.errors import ExportError
from fico_export.exporter.lint import lint

_REPORT = (
    "this is a bug of the exporter or of the method's file: please file an issue with the command you ran"
)


def check_graph(path: Path, target: Target, *, static: bool) -> None:
    """Check one ONNX file against a target.

    Args:
        path: of the .onnx file, its external data beside it.
        target: whose allow-list and limits hold.
        static: whether every dimension must be a number.

    Raises:
        ExportError: naming the node or tensor that breaks a rule.
    """
    model = ir.load(path)
    _check_versions(model, target)
    _check_operators(model, target)
    inferred = _infer_shapes(path)
    if static:
        _check_static(inferred)


def _check_versions(model: ir.Model, target: Target) -> None:
    if model.opset_imports != {"": target.opset} or model.ir_version != target.ir_version:
        raise ExportError(
            f"graph has opsets {model.opset_imports} and IR {model.ir_version}; "
            f"{target.name} has opset {target.opset} and IR {target.ir_version}",
            mend=_REPORT,
        )


def _check_operators(model: ir.Model, target: Target) -> None:
    for violation in lint(model, target):
        raise ExportError(str(violation), mend=f"{violation.mend}; {_REPORT}")


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
