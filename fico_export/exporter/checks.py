"""Rules that every exported graph must keep, checked on the files as written."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import external_data_helper, shape_inference

from fico_export.devices.targets import CONTRIB, Target
from fico_export.errors import ExportError
from fico_export.exporter.lint import lint

_REPORT = (
    "this is a bug of the exporter or of the method's file: please file an issue with the command you ran"
)


def check_graph(
    path: Path, target: Target, *, static: bool, quantized: bool = False, opset: int | None = None
) -> None:
    """Check one ONNX file against a target.

    Args:
        path: of the .onnx file, its external data beside it.
        target: whose allow-list and limits hold.
        static: whether every dimension must be a number.
        quantized: whether weights of it are, which allows the target's operator for them.
        opset: that it is to have; the target's by default.

    Raises:
        ExportError: naming the node or tensor that breaks a rule.
    """
    model = ir.load(path)
    also = target.beside(quantized=quantized)
    _check_versions(model, target, opset or target.opset, also)
    _check_operators(model, target, also)
    inferred = _infer_shapes(path)
    if CONTRIB in model.opset_imports:
        _check_loads(path)
    if static:
        _check_static(inferred)


def _check_versions(model: ir.Model, target: Target, opset: int, also: Set[str]) -> None:
    imports = dict(model.opset_imports)
    if imports.get(CONTRIB) == 1 and any(operator.startswith(CONTRIB) for operator in also):
        del imports[CONTRIB]
    if imports != {"": opset} or model.ir_version != target.ir_version:
        raise ExportError(
            f"graph has opsets {model.opset_imports} and IR {model.ir_version}; "
            f"{target.name} has opset {opset} and IR {target.ir_version}",
            fix=_REPORT,
        )


def _check_operators(model: ir.Model, target: Target, also: Set[str]) -> None:
    for violation in lint(model, target, also=also):
        raise ExportError(str(violation), fix=f"{violation.fix}; {_REPORT}")


def _infer_shapes(path: Path) -> onnx.ModelProto:
    """Full check with strict shape inference; external data stays on disk."""
    try:
        proto = onnx.load(str(path), load_external_data=False)
        _weights_to_inputs(proto, path.parent)
        onnx.checker.check_model(proto, full_check=True)
        return shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is not valid ONNX: {error}", fix=_REPORT) from error


def _weights_to_inputs(model: onnx.ModelProto, folder: Path) -> None:
    """Make inputs of the tensors that lie in other files: onnx's checker refuses files that are hard links.

    Raises:
        ExportError: a file is missing or too short.
    """
    inside = []
    for tensor in model.graph.initializer:
        if not external_data_helper.uses_external_data(tensor):
            inside.append(tensor)
            continue
        info = external_data_helper.ExternalDataInfo(tensor)
        file = folder / info.location
        if not file.is_file() or file.stat().st_size < (info.offset or 0) + (info.length or 0):
            raise ExportError(f"tensor {tensor.name!r} is not whole in {info.location}", fix=_REPORT)
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    del model.graph.initializer[:]
    model.graph.initializer.extend(inside)


def _check_loads(path: Path) -> None:
    """Let ONNX Runtime check the operators that are its own; weights are mapped, and not read."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own without a common base
        raise ExportError(f"ONNX Runtime does not load {path.name}: {error}", fix=_REPORT) from error


def _check_static(model: onnx.ModelProto) -> None:
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        shape = value.type.tensor_type.shape
        if any(not d.HasField("dim_value") for d in shape.dim):
            raise ExportError(f"tensor {value.name!r} of the vision graph has a free dimension", fix=_REPORT)
    known = {v.name for v in (*graph.input, *graph.output, *graph.value_info)} | {
        i.name for i in graph.initializer
    }
    unknown = [name for node in graph.node for name in node.output if name and name not in known]
    if unknown:
        raise ExportError(f"tensor {unknown[0]!r} of the vision graph has no inferred shape", fix=_REPORT)
