"""Checkpoint files that lie in the bundle too, as hard links: weights that need no conversion are used where they are.

ONNX Runtime and TensorRT take a hard link beside the graph for any other file; symbolic links and paths that lead out of the
folder ONNX Runtime refuses. Deleting the checkpoint leaves the bundle whole; changing it in place changes the bundle.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from fico_export.bundle.bounds import bundle_path
from fico_export.models.weights import Stored, Weights

_DTYPES = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16"}
# Smaller tensors would be kept inside the graph anyway.
SMALLEST_BYTES = 1024


@dataclass(frozen=True)
class Links:
    """Which files of a checkpoint can be read from a folder, and by which name; none, unless told.

    Attributes:
        folder: where the graphs are written.
        names: of the links there, by the checkpoint's files.
    """

    folder: Path = Path()
    names: Mapping[Path, str] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """The links."""
        return [self.folder / name for name in self.names.values()]

    def tensor(self, stored: Stored, dtype: ir.DataType, name: str) -> ir.ExternalTensor | None:
        """The tensor as it is stored, never read here; None where it is in no linked file or must be converted."""
        if stored.file not in self.names or not linkable(stored, dtype):
            return None
        return ir.ExternalTensor(
            self.names[stored.file],
            stored.offset,
            stored.nbytes,
            dtype,
            shape=ir.Shape(stored.shape),
            name=name,
            base_dir=self.folder,
        )


def linkable(stored: Stored, dtype: ir.DataType) -> bool:
    """Whether a graph that wants `dtype` can use a tensor as it lies in its file.

    Files of old have headers of odd lengths, and so tensors that begin between two addresses of their dtype.
    """
    return (
        stored.dtype == _DTYPES[dtype]
        and stored.nbytes >= SMALLEST_BYTES
        and stored.offset % dtype.itemsize == 0
    )


def link_files(checkpoint: Weights, names: Iterable[str], dtype: ir.DataType, folder: Path) -> Links:
    """Link into `folder` the files that hold tensors a graph can use as they are.

    Args:
        checkpoint: the weights.
        names: of the tensors that graphs read.
        dtype: that the graphs want most of them in.
        folder: where the graphs will be written.

    Returns:
        What could be linked: nothing across file systems, nor where the file system knows no hard links.
    """
    stored = [checkpoint.tensors[name] for name in names]
    linked: dict[Path, str] = {}
    for file in dict.fromkeys(s.file for s in stored if linkable(s, dtype)):
        # A CLIP model's file can be called like one of the checkpoint.
        name = file.name if file.name not in linked.values() else f"{file.parent.name}.{file.name}"
        try:
            # A name that a manifest would not take is linked under none; resolved: the hub's cache holds symbolic links.
            os.link(file.resolve(), folder / bundle_path(name))
        except (OSError, ValueError):
            continue
        linked[file] = name
    return Links(folder, linked)


def written_bytes(
    checkpoint: Weights, shapes: Mapping[str, tuple[int, ...]], dtype: ir.DataType, links: Links
) -> int:
    """Bytes of the tensors that must be written, in `dtype`, because they are not linked."""
    return sum(
        int(math.prod(shape) * dtype.itemsize)
        for name, shape in shapes.items()
        if links.tensor(checkpoint.tensors[name], dtype, name) is None
    )
