"""A linear layer in both INT4 forms: what ONNX Runtime computes against the weights written out in NumPy."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from fico_export.bundle.manifest import Quantization
from fico_export.devices import targets
from fico_export.errors import ConfigError, ExportError
from fico_export.exporter import quantize, weights
from fico_export.exporter.quantize import bind, make_record, require_fit

NAME = "language_model.layers.0.mlp.up_proj.weight"


def record(form, **changes):
    values = {
        "bits": 4, "block": 32, "scheme": "rtn", "head_bits": None, "vision_bits": None, "form": form,
        "activations": "fp32", "signed_scales": form == "matmul_nbits", "opset": 21,
    }  # fmt: skip
    return Quantization(**values | changes)


def checkpoint_of(name, weight):
    return SimpleNamespace(tensors={name: SimpleNamespace(shape=tuple(weight.shape))}, load=lambda _: weight)


def graph_of(name, weight, dtype=ir.DataType.FLOAT):
    """x [B, S, K] → x · Wᵀ, as torch's exporter writes a linear layer."""
    outputs, inputs = weight.shape
    x = ir.val("x", dtype, ["batch", "rows", inputs])
    w = ir.Value(
        name=name, type=ir.TensorType(dtype), shape=ir.Shape([outputs, inputs]), const_value=ir.tensor([0.0])
    )
    turn = ir.node("Transpose", [w], {"perm": [1, 0]}, name="turn")
    turn.outputs[0].type, turn.outputs[0].shape = ir.TensorType(dtype), ir.Shape([inputs, outputs])
    product = ir.node("MatMul", [x, turn.outputs[0]], name="up_proj/MatMul")
    product.outputs[0].type = ir.TensorType(dtype)
    product.outputs[0].shape = ir.Shape(["batch", "rows", outputs])
    product.outputs[0].name = "y"
    graph = ir.Graph([x], product.outputs, nodes=[turn, product], opset_imports={"": 18}, name="graph")
    graph.register_initializer(w)
    return ir.Model(graph, ir_version=10)


def written(folder, name, weight, rec, dtype=ir.DataType.FLOAT):
    model = graph_of(name, weight, dtype)
    bind(model, checkpoint_of(name, weight), rec)
    weights.save(model, folder / "graph.onnx", lambda count: None)
    onnx.checker.check_model(str(folder / "graph.onnx"))
    return folder / "graph.onnx"


def stored(path, name, bits, block, inputs):
    """The matrix [N, K] that the bytes in the file stand for, by the operators' documentation."""
    tensors = {i.name: i for i in onnx.load(str(path)).graph.initializer}
    scales = onnx.numpy_helper.to_array(tensors[f"{name}.scales"]).astype(np.float64)
    if f"{name}.codes" in tensors:
        codes = onnx.numpy_helper.to_array(tensors[f"{name}.codes"]).astype(np.float64)
        return (codes * np.repeat(scales, block, 0)).T
    packed = onnx.numpy_helper.to_array(tensors[f"{name}.packed"])
    outputs, blocks, _ = packed.shape
    matrix = np.zeros((outputs, blocks * block))
    for (n, g, byte), value in np.ndenumerate(packed):
        scale = scales[n * blocks + g]
        if bits == 8:
            matrix[n, g * block + byte] = (int(value) - 128) * scale
        else:
            matrix[n, g * block + 2 * byte] = ((int(value) & 15) - 8) * scale
            matrix[n, g * block + 2 * byte + 1] = ((int(value) >> 4) - 8) * scale
    return matrix[:, :inputs]


def run(path, x, *, as_written=False):
    options = ort.SessionOptions()
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


@pytest.mark.parametrize(("form", "inputs"), [("dequantize", 96), ("matmul_nbits", 96), ("matmul_nbits", 33)])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_runtime_computes_with_the_weights_as_rounded(form, inputs, bits, tmp_path):
    name = NAME if bits == 4 else "lm_head.weight"
    weight = torch.randn(48, inputs, generator=torch.Generator().manual_seed(1)) * 0.05
    path = written(tmp_path, name, weight, record(form, head_bits=8))
    matrix = stored(path, name, bits, 32, inputs)
    x = np.random.RandomState(0).randn(2, 7, inputs).astype(np.float32)
    want = x @ matrix.T.astype(np.float32)

    assert np.linalg.norm(matrix - weight.numpy()) < (0.12 if bits == 4 else 0.01) * weight.norm()
    # MatMulNBits of accuracy_level 4 rounds activations to 8 bits as well, and ONNX Runtime makes one of a DequantizeLinear.
    assert np.linalg.norm(run(path, x) - want) <= 0.01 * np.linalg.norm(want)
    if form == "dequantize":
        np.testing.assert_allclose(run(path, x, as_written=True), want, atol=1e-5 * np.abs(want).max())


def test_fp16_activations_take_fp16_scales(tmp_path):
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(1)) * 0.05
    rec = record("dequantize", block=128, activations="fp16")
    path = written(tmp_path, NAME, weight, rec, ir.DataType.FLOAT16)
    tensors = {i.name: i.data_type for i in onnx.load(str(path)).graph.initializer}

    assert tensors == {
        f"{NAME}.codes": onnx.TensorProto.INT4,
        f"{NAME}.scales": onnx.TensorProto.FLOAT16,
        "zero_points.4.1x48": onnx.TensorProto.INT4,
    }
    x = np.random.RandomState(0).randn(1, 7, 128).astype(np.float16)
    want = x.astype(np.float64) @ stored(path, NAME, 4, 128, 128).T
    assert np.linalg.norm(run(path, x) - want) <= 0.01 * np.linalg.norm(want)


def test_an_engine_of_it_compiles(tmp_path):
    """For Ampere, Ada and Blackwell, with none in this machine; INT8 beside INT4."""
    rtx = pytest.importorskip("rtx", exc_type=ImportError, reason="needs TensorRT-RTX")
    for name, block in ((NAME, 32), (NAME, 128), ("lm_head.weight", 128)):
        folder = tmp_path / f"{name}{block}"
        folder.mkdir()
        rec = record("dequantize", block=block, head_bits=8, activations="fp16")
        weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(1))
        weight[3] = 0  # whatever its scale, it must be positive
        path = written(folder, name, weight, rec, ir.DataType.FLOAT16)

        assert rtx.compile_engine(path, {"batch": (1, 1, 1), "rows": (1, 8, 64)}).nbytes > 0


def test_a_weight_is_quantised_once_and_not_before_it_is_written(tmp_path, monkeypatch):
    weight = torch.randn(48, 96)
    calls = []
    rounded = quantize.quantize
    monkeypatch.setattr(quantize, "quantize", lambda *a, **k: calls.append(a) or rounded(*a, **k))
    model = graph_of(NAME, weight)
    bind(model, checkpoint_of(NAME, weight), record("dequantize"))
    assert not calls
    weights.save(model, tmp_path / "graph.onnx", lambda count: None)

    assert len(calls) == 1


def test_a_weight_that_feeds_something_else_is_refused():
    weight = torch.randn(48, 96)
    model = graph_of(NAME, weight)
    model.graph[1].op_type = "Gemm"
    with pytest.raises(ExportError, match="feeds more than a linear layer"):
        bind(model, checkpoint_of(NAME, weight), record("dequantize"))


@pytest.mark.parametrize(
    ("shape", "block", "fix"),
    [((48, 33), 32, "matmul_nbits"), ((48, 160), 128, "--block 32"), ((47, 128), 128, "matmul_nbits")],
)
def test_matrices_that_do_not_divide_are_refused_where_nothing_fills_them(shape, block, fix):
    require_fit({NAME: shape}, record("matmul_nbits", block=block))
    require_fit({"lm_head.weight": shape}, record("dequantize", block=block))
    with pytest.raises(ConfigError, match="whole blocks") as caught:
        require_fit({NAME: shape}, record("dequantize", block=block))
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    "options", [{"block": 64}, {"head": "int2"}, {"vision": "int4"}, {"target": "no-int4"}], ids=str
)
def test_options_that_are_not_known_are_refused(options):
    target = targets.get("portable")
    if options.pop("target", None):
        target = target.model_copy(update={"int4": None})
    asked = {"block": 128, "head": None, "vision": None, "awq": False} | options
    with pytest.raises(ConfigError):
        make_record(target, **asked)
