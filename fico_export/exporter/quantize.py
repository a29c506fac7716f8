"""Weights of linears to INT4 or INT8 blocks, in the form that a target reads.

`dequantize`: codes [K, N] → DequantizeLinear (blocked along K; opset 21) → MatMul. Codes and an explicit zero point of
zeros are INT4: old TensorRT parsers take the type from the zero point. `matmul_nbits`: com.microsoft::MatMulNBits, two codes
a byte along K, zero point 8 implied. Rounding is in `rounding.py`, and happens when a tensor is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from fico_export.bundle.manifest import Quantization
from fico_export.devices.targets import Target
from fico_export.errors import ConfigError, ExportError, FicoError
from fico_export.exporter.rounding import Blocks, quantize
from fico_export.exporter.views import View
from fico_export.models.weights import Weights

PRECISION = "int4"
BLOCKS = (128, 32)
HEAD_BITS = {"int8": 8, "int4": 4}
VISION_BITS = {"int8": 8}

_DECODER = re.compile(r"language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
_VISION = re.compile(
    r"vision_tower\.encoder\..*\.([qkv]_proj|out_proj|fc[12]|qkv|proj|(gate|up|down)_proj|projection_layer|linear_fc[12])\.weight"
)
_HEAD = "lm_head.weight"
_ACCURACY_LEVEL = 4  # activations to INT8 block by block: twice as fast on CPUs (docs/int4.md has its error)
_MICROSOFT = "com.microsoft"


def make_record(
    target: Target, *, block: int, head: str | None, vision: str | None, awq: bool
) -> Quantization:
    """What the manifest says of a quantised bundle, and all that the functions here go by.

    Raises:
        ConfigError: the target takes no INT4, or an option is not one of those known.
    """
    if target.int4 is None:
        raise target.not_offered(PRECISION)
    for flag, value, known in (
        ("--block", block, BLOCKS),
        ("--quantize-head", head, (None, *HEAD_BITS)),
        ("--quantize-vision", vision, (None, *VISION_BITS)),
    ):
        if value not in known:
            raise ConfigError(
                f"{flag} {value}", fix=f"{flag} one of: {', '.join(str(k) for k in known if k is not None)}"
            )
    return Quantization(
        bits=4,
        block=block,
        scheme="awq" if awq else "rtn",
        head_bits=HEAD_BITS[head] if head else None,
        vision_bits=VISION_BITS[vision] if vision else None,
        form=target.int4.form,
        activations=target.int4.activations,
        signed_scales=target.int4.signed_scales,
        opset=target.int4.opset,
    )


def bits_of(name: str, record: Quantization) -> int | None:
    """Bits of a tensor by canonical name; None where it is not quantised."""
    if _DECODER.fullmatch(name):
        return record.bits
    if _VISION.fullmatch(name):
        return record.vision_bits
    return record.head_bits if name == _HEAD else None


def require_fit(shapes: Mapping[str, tuple[int, ...]], record: Quantization) -> None:
    """Refuse matrices that do not divide into whole blocks where the form cannot fill them up.

    Raises:
        ConfigError: naming the first.
    """
    if record.form == "matmul_nbits":
        return
    for name, shape in shapes.items():
        if bits_of(name, record) is None:
            continue
        outputs, inputs = shape
        if inputs % record.block or outputs % 2:
            smaller = [b for b in BLOCKS if b < record.block and not inputs % b and not outputs % 2]
            raise ConfigError(
                f"{name} is {outputs}×{inputs}: DequantizeLinear takes whole blocks of {record.block} inputs and an even number of outputs",
                fix=f"--block {smaller[0]}" if smaller
                # Only what was asked for can be left out; the decoder's own matrices are what INT4 is.
                else "leave out --quantize-head and --quantize-vision, choose a target whose INT4 form is matmul_nbits, "
                "or --precision fp16",
            )  # fmt: skip


def total_bytes(shapes: Mapping[str, tuple[int, ...]], record: Quantization) -> int:
    """Bytes that tensors of these shapes take in a bundle; those that stay are counted in FP32 where activations are."""
    total = 0.0
    for name, shape in shapes.items():
        bits = bits_of(name, record)
        wide = 4 if record.activations == "fp32" and name.startswith("language_model") else 2
        total += math.prod(shape) * (wide if bits is None else bits / 8 + 5 / record.block)
    return int(total)


def dequantized(checkpoint: Weights, record: Quantization) -> View:
    """The checkpoint as a runtime computes with it after quantisation: quantised tensors come back in FP32."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        bits = bits_of(name, record)
        if bits is None:
            return tensor
        blocks = quantize(tensor, bits, record.block, signed=record.signed_scales)
        return blocks.dequantized(tensor.shape[1])

    return View(checkpoint, change)


def bind(model: ir.Model, checkpoint: Weights, record: Quantization) -> None:
    """Replace each Transpose → MatMul on a tensor that is to be quantised by its quantised form, read when written.

    Args:
        model: a traced graph, no weights bound yet.
        checkpoint: the weights.
        record: what to quantise and how.

    Raises:
        ExportError: a tensor to be quantised is used otherwise.
    """
    rewrite = _dequantize if record.form == "dequantize" else _matmul_nbits
    for name, value in list(model.graph.initializers.items()):
        bits = bits_of(name, record)
        if bits is None:
            continue
        for transpose in [node for node, _ in value.uses()]:
            products = list(transpose.outputs[0].uses())
            if transpose.op_type != "Transpose" or any((n.op_type, i) != ("MatMul", 1) for n, i in products):
                raise ExportError(
                    f"tensor {name!r} is to be quantised and feeds more than a linear layer",
                    fix="leave out --quantize-vision, and file an issue with the command you ran",
                )
            for product, _ in products:
                rewrite(model, _Source(checkpoint, name, bits, record), product)
            model.graph.remove(transpose, safe=True)
        del model.graph.initializers[name]
    # Traced in an earlier opset, for the later ones' operators (Gelu of 20) are not in every parser; up to 21 the operators that
    # graphs here are made of only took more types.
    model.graph.opset_imports[""] = max(model.graph.opset_imports[""], record.opset)
    if record.form == "matmul_nbits":
        model.graph.opset_imports[_MICROSOFT] = 1


class _Source:
    """A quantised tensor, computed when its codes are read; the scales are kept until they are read in turn."""

    def __init__(self, checkpoint: Weights, name: str, bits: int, record: Quantization) -> None:
        self.name, self.bits, self.record = name, bits, record
        self.outputs, self.inputs = checkpoint.tensors[name].shape
        self.blocks = -(-self.inputs // record.block)
        self._checkpoint = checkpoint
        self._scales: npt.NDArray[np.float16] | None = None

    def codes(self) -> npt.NDArray[np.int8]:
        """Codes [K′, N]."""
        blocks = self._compute()
        self._scales = blocks.scales
        return blocks.codes

    def scales(self) -> npt.NDArray[np.float16]:
        """Scales [G, N]."""
        scales, self._scales = self._scales, None
        return self._compute().scales if scales is None else scales

    def _compute(self) -> Blocks:
        tensor = self._checkpoint.load(self.name)
        try:
            return quantize(tensor, self.bits, self.record.block, signed=self.record.signed_scales)
        except FicoError as error:
            raise type(error)(f"tensor {self.name!r}: {error.what}", fix=error.fix) from error


def _dequantize(model: ir.Model, source: _Source, product: ir.Node) -> None:
    name, dtype = source.name, _float(product.inputs[0])
    numpy_type, kind = (ml_dtypes.int4, ir.DataType.INT4) if source.bits == 4 else (np.int8, ir.DataType.INT8)
    grid = (source.blocks, source.outputs)
    codes = _initializer(
        model,
        f"{name}.codes",
        kind,
        (source.inputs, source.outputs),
        lambda: source.codes().astype(numpy_type, copy=False),
    )
    scales = _initializer(
        model, f"{name}.scales", dtype, grid, lambda: source.scales().astype(dtype.numpy(), copy=False)
    )
    # Of every matrix of one shape the same zeros.
    zeros = _initializer(
        model,
        f"zero_points.{source.bits}.{grid[0]}x{grid[1]}",
        kind,
        grid,
        lambda: np.zeros(grid, numpy_type),
    )
    node = ir.node(
        "DequantizeLinear",
        [codes, scales, zeros],
        {"axis": 0, "block_size": source.record.block},
        name=f"{product.name}.weight",
    )
    node.outputs[0].name = f"{name}.dequantized.{product.name}"
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), codes.shape
    model.graph.insert_before(product, node)
    product.replace_input_with(1, node.outputs[0])


def _matmul_nbits(model: ir.Model, source: _Source, product: ir.Node) -> None:
    name, dtype = source.name, _float(product.inputs[0])
    outputs, blocks, block = source.outputs, source.blocks, source.record.block
    packed = _initializer(
        model,
        f"{name}.packed",
        ir.DataType.UINT8,
        (outputs, blocks, block * source.bits // 8),
        lambda: _packed(source.codes(), source.bits).reshape(outputs, blocks, -1),
    )
    scales = _initializer(
        model,
        f"{name}.scales",
        dtype,
        (outputs * blocks,),
        lambda: source.scales().T.astype(dtype.numpy()).reshape(-1),
    )
    node = ir.node(
        "MatMulNBits",
        [product.inputs[0], packed, scales],
        {
            "K": source.inputs,
            "N": outputs,
            "bits": source.bits,
            "block_size": block,
            "accuracy_level": _ACCURACY_LEVEL,
        },
        domain=_MICROSOFT,
        name=f"{product.name}NBits",
    )
    old, new, read = product.outputs[0], node.outputs[0], product.inputs[0]
    # Its name too: it may be an output of the graph.
    new.name, old.name = old.name, f"{old.name}.replaced"
    new.type, new.shape = ir.TensorType(dtype), old.shape
    if new.shape is None and read is not None and read.shape is not None:
        # ONNX's shape inference, which knew that of a MatMul, does not know this operator.
        new.shape = ir.Shape([*read.shape[:-1], outputs])
    model.graph.insert_before(product, node)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(product, safe=True)


def _packed(codes: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes [K′, N] → [N, bytes along K′], offset to be unsigned, the earlier of two in the lower half of a byte."""
    unsigned = (codes + np.int8(8)).view(np.uint8) if bits == 4 else codes.view(np.uint8) ^ np.uint8(128)
    if bits == 4:
        unsigned = unsigned[0::2] | unsigned[1::2] << np.uint8(4)
    return np.ascontiguousarray(unsigned.T)


def _float(value: ir.Value | None) -> ir.DataType:
    assert value is not None
    assert value.dtype is not None
    return value.dtype


def _initializer(
    model: ir.Model,
    name: str,
    dtype: ir.DataType,
    shape: tuple[int, ...],
    read: Callable[[], npt.NDArray[np.generic]],
) -> ir.Value:
    """The initializer of that name, made of what `read` returns when the graph is written."""
    if name in model.graph.initializers:
        return model.graph.initializers[name]

    def tensor() -> ir.TensorProtocol:
        return ir.Tensor(read(), dtype=dtype, shape=ir.Shape(shape), name=name)

    lazy = ir.LazyTensor(tensor, dtype=dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=lazy.shape, type=ir.TensorType(dtype), const_value=lazy)
    model.graph.register_initializer(value)
    return value
