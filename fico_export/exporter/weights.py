"""Bind a checkpoint's tensors to a graph's initializers, and stream them to disk one at a time."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters

from fico_export.errors import ConfigError, FicoError
from fico_export.models.parts.checkpoint import Checkpoint

_TORCH_DTYPES = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}


def bind(model: ir.Model, checkpoint: Checkpoint, warn: Callable[[str], None]) -> None:
    """Point every initializer named like a checkpoint tensor at that tensor, converted when it is read.

    Args:
        model: a traced graph; its other initializers are constants and stay.
        checkpoint: the weights.
        warn: told, once per tensor and when it is read, of values that are not finite.
    """
    for name, value in model.graph.initializers.items():
        if name in checkpoint.tensors:
            assert value.dtype is not None
            value.const_value = _lazy(checkpoint, name, value.dtype, warn)


@contextmanager
def own_errors() -> Iterator[None]:
    """onnx_ir wraps what a tensor raises when it is read: raise that itself, and what the disk says."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (FicoError, OSError)):
            cause = cause.__cause__
        if cause is None or cause is error:
            raise
        raise cause from None


def save(model: ir.Model, path: Path, progress: Callable[[int], None]) -> None:
    """Write the graph, and its tensors in one file `<name>.onnx_data` beside it.

    Args:
        model: weights bound.
        path: of the .onnx file.
        progress: told the bytes of each tensor written.
    """

    def step(tensor: ir.TensorProtocol, info: object) -> None:
        progress(tensor.nbytes)

    try:
        ir.save(model, path, external_data=f"{path.name}_data", size_threshold_bytes=1024, callback=step)
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy gives no errno when a file takes only part of what is written, which means that it cannot grow
        raise OSError(errno.ENOSPC, str(error)) from error


def total_bytes(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> int:
    """Bytes of tensors of these shapes, `itemsize` bytes an element."""
    return sum(math.prod(shape) for shape in shapes.values()) * itemsize


def nbytes(model: ir.Model) -> int:
    """Bytes of a graph's initializers."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def _lazy(
    checkpoint: Checkpoint, name: str, dtype: ir.DataType, warn: Callable[[str], None]
) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        stored = checkpoint.load(name)
        tensor = stored.to(_TORCH_DTYPES[dtype]).contiguous()
        if not bool(torch.isfinite(tensor).all()):
            if bool(torch.isfinite(stored).all()):
                raise ConfigError(
                    f"tensor {name!r} holds values beyond the range of {dtype.name}",
                    mend="export with --precision fp32",
                )
            warn(f"tensor {name!r} of the checkpoint holds NaN or infinity: answers will be meaningless")
        return tensor_adapters.TorchTensor(tensor, name=name)

    shape = ir.Shape(checkpoint.tensors[name].shape)
    return ir.LazyTensor(read, dtype=dtype, shape=shape, name=name)
