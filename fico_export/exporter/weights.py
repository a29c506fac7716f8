"""Bind a checkpoint's tensors to a graph's initializers: linked as they are, or converted and streamed to disk one by one."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir import external_data, tensor_adapters

from fico_export.errors import ConfigError, FicoError
from fico_export.exporter.links import SMALLEST_BYTES, Links
from fico_export.models.weights import Weights

_TORCH_DTYPES = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}
NO_LINKS = Links()
_SHORT_WRITE = re.compile(r"requested and \d+ written")


def bind(model: ir.Model, checkpoint: Weights, warn: Callable[[str], None], links: Links = NO_LINKS) -> None:
    """Point every initializer named like a checkpoint tensor at that tensor: where it lies, or converted when it is read.

    A weight that must be converted and that the graph only transposes (torch keeps [out, in], MatMul takes [in, out]) is
    bound transposed: otherwise each runtime would do it again at every start. One that is linked stays as torch keeps it.

    Args:
        model: a traced graph; its other initializers are constants and stay.
        checkpoint: the weights.
        warn: told, once per tensor and when it is read, of values that are not finite. Linked tensors are never read, so
            nobody is told of theirs: verification notices.
        links: files that the graph can read beside itself.
    """
    for name, value in list(model.graph.initializers.items()):
        if name not in checkpoint.tensors:
            continue
        assert value.dtype is not None
        if linked := links.tensor(checkpoint.tensors[name], value.dtype, name):
            value.const_value = linked
            continue
        transposes = [node for node, _ in value.uses()]
        matrix = len(checkpoint.tensors[name].shape) == 2
        if not matrix or not transposes or any(n.op_type != "Transpose" for n in transposes):
            value.const_value = _lazy(checkpoint, name, value.dtype, warn)
            continue
        tensor = _lazy(checkpoint, name, value.dtype, warn, transposed=True)
        turned = ir.Value(name=f"{name}.T", shape=ir.Shape(tensor.shape), type=value.type, const_value=tensor)
        for node in transposes:
            ir.convenience.replace_all_uses_with(node.outputs[0], turned)
            model.graph.remove(node, safe=True)
        del model.graph.initializers[name]
        model.graph.register_initializer(turned)


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
    """Write the graph, and beside it, in one file `<name>.onnx_data`, its tensors that lie in no other file yet.

    Args:
        model: weights bound.
        path: of the .onnx file.
        progress: told the bytes of each tensor written.
    """

    def step(tensor: ir.TensorProtocol, info: object) -> None:
        progress(tensor.nbytes)

    own = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor)
        and value.const_value.nbytes > SMALLEST_BYTES
    ]
    try:
        # Constants alone (of a graph whose weights are all in another's file) are not worth a file.
        if any(isinstance(value.const_value, ir.LazyTensor) for value in own):
            tensors = [value.const_value for value in own if value.const_value is not None]
            name = f"{path.name}_data"
            written = external_data.convert_tensors_to_external(tensors, path.parent, name, callback=step)
            for value, tensor in zip(own, written, strict=True):
                value.const_value = tensor
        ir.save(model, path)
    except OSError as error:
        # numpy's words, and no errno, when a file takes only part of what is written: it cannot grow
        if error.errno is None and _SHORT_WRITE.search(str(error)):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise


def share(model: ir.Model, path: Path) -> None:
    """Let a graph read the weights that a graph already saved at `path`, in the same folder, has in its data file."""
    saved = ir.load(path).graph.initializers
    for name, value in model.graph.initializers.items():
        stored = saved[name].const_value if name in saved else None
        if isinstance(stored, ir.ExternalTensor) and value.const_value is not None:
            same = (stored.dtype, stored.shape) == (value.const_value.dtype, value.const_value.shape)
            if same and isinstance(value.const_value, ir.LazyTensor):  # lazy: of the checkpoint, no constant
                value.const_value = stored


def nbytes(model: ir.Model) -> int:
    """Bytes of a graph's initializers."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def unwritten_bytes(model: ir.Model) -> int:
    """Bytes of a graph's initializers that lie in no file yet."""
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    return sum(t.nbytes for t in tensors if not isinstance(t, ir.ExternalTensor))


def _lazy(
    checkpoint: Weights,
    name: str,
    dtype: ir.DataType,
    warn: Callable[[str], None],
    *,
    transposed: bool = False,
) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        stored = checkpoint.load(name)
        tensor = stored.to(_TORCH_DTYPES[dtype])
        if not bool(torch.isfinite(tensor).all()):
            if bool(torch.isfinite(stored).all()):
                raise ConfigError(
                    f"tensor {name!r} holds values beyond the range of {dtype.name}",
                    fix="export with --precision fp32",
                )
            warn(f"tensor {name!r} of the checkpoint holds NaN or infinity: answers will be meaningless")
        return tensor_adapters.TorchTensor((tensor.T if transposed else tensor).contiguous(), name=name)

    shape = checkpoint.tensors[name].shape
    return ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(shape[::-1] if transposed else shape), name=name)
