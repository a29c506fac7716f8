"""A Hugging Face checkpoint folder: finds its safetensors, names its tensors, reads them one at a time.

Never pickle, never remote code. Whatever layout its keys have, tensors are read by one name, the canonical one:
`vision_tower.…`, `multi_modal_projector.…`, `language_model.layers.…`, `lm_head.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fico_export import documents
from fico_export.errors import CheckpointError
from fico_export.models.parts import identify, layouts, weight_files
from fico_export.models.parts.headers import Stored, read_header

__all__ = ["RENAMES", "Rename", "Stored", "Weights", "canonical", "read_json", "read_text"]

Rename = tuple[re.Pattern[str], str]
"""What a part of a key is replaced by."""

RENAMES: tuple[Rename, ...] = (
    (re.compile(r"^model\."), ""),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "language_model."),
    (re.compile(r"^vision_tower\.vision_model\."), "vision_tower."),
)
"""Of LLaVA's checkpoints: two layouts are public, and transformers 5 saves a third. A family with others brings its own."""

_DTYPES = ("BF16", "F16", "F32", "F64")
_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|position_ids)$")
"""What older checkpoints store and the config says too."""

_ADAPTER = re.compile(r"(^|\.)(lora_\w+|modules_to_save|base_layer|base_model)(\.|$)")
_PACKED = re.compile(
    r"(^|[._])(qweight|qzeros|g_idx|weight_packed|weight_scale(_inv|_2)?|weight_zero_point|weight_shape|(input|output|k|v)_scale"
    r"|absmax|nested_absmax|quant_map|quant_state|SCB|weight_format|codebooks|W_q|scales|biases)(\.|$)"
)
"""Names of tensors that say how others are packed."""


def canonical(key: str, renames: Sequence[Rename] = RENAMES) -> str:
    """The one name of a checkpoint key."""
    for pattern, replacement in renames:
        key = pattern.sub(replacement, key)
    return key


def nothing(name: str) -> bool:
    """No tensor is known to be left out."""
    return False


class Weights:
    """The tensors of a checkpoint folder by canonical name.

    Raises:
        CheckpointError: no safetensors, or shards that are missing, truncated or at odds with their index.
    """

    def __init__(
        self,
        folder: Path,
        tied: tuple[str, str] | None = None,
        renames: Sequence[Rename] = RENAMES,
    ) -> None:
        """Read the headers; `tied` names two tensors that are one where only one of them is stored."""
        self.folder, self._renames = folder, renames
        self.tensors: dict[str, Stored] = {}
        found = weight_files.find(folder)
        self.files = list(found.paths)
        for file in self.files:
            self._add(read_header(file))
        missing = sorted(k for k in found.promised if canonical(k, renames) not in self.tensors)
        if missing:
            raise CheckpointError(
                f"{found.index} names {len(missing)} tensors that no shard holds, first {missing[0]!r}",
                fix=f"download the checkpoint again: the shards in {folder} are from another revision than the index",
            )
        for name, other in (tied, tied[::-1]) if tied else ():
            if name not in self.tensors and other in self.tensors:
                self.tensors[name] = self.tensors[other]

    def _add(self, stored: Iterable[Stored]) -> None:
        for entry in stored:
            name = canonical(entry.key, self._renames)
            other = self.tensors.get(name)
            if other is not None:
                raise CheckpointError(
                    f"tensor {name!r} is stored twice: as {other.key!r} in {other.file.name} and as {entry.key!r} in {entry.file.name}",
                    fix=f"download the checkpoint again into an empty folder: files of two revisions lie in {self.folder}",
                )
            self.tensors[name] = entry

    def check(self, expected: Mapping[str, tuple[int, ...]], unread: Callable[[str], bool] = nothing) -> None:
        """Refuse a checkpoint whose tensors are not those of its config.

        A tensor that the config has no place for is one too: a layer, a bias or a scale left out would change every answer
        without a word.

        Args:
            expected: shapes of the tensors that are read, by canonical name.
            unread: tells of a canonical name whether the model is known to have such a tensor and not to need it.

        Raises:
            CheckpointError: naming the first such tensor.
        """
        others = {name: stored for name, stored in self.tensors.items() if name not in expected}
        for stored in others.values():
            self._name(stored)
        extra = [s for name, s in others.items() if not _BUFFERS.search(name) and not unread(name)]
        for name, shape in expected.items():
            self._check_one(name, shape)
        if extra:
            raise CheckpointError(
                f"the checkpoint has a tensor {extra[0].key!r} that config.json has no place for",
                fix=f"use the config.json of this checkpoint in {self.folder}; to leave such tensors out as transformers does: "
                f"{identify.resave()}",
            )

    def _name(self, stored: Stored) -> None:
        """Refuse a tensor whose name says what was done to the weights."""
        if _ADAPTER.search(stored.key):
            raise CheckpointError(
                f"tensor {stored.key!r} is of an adapter (LoRA) that was not merged into the weights",
                fix="merge it with peft's merge_and_unload(), save the model, and give --model that folder",
            )
        if "mm_projector" in stored.key:
            raise CheckpointError(
                f"tensor {stored.key!r} is of a LLaVA in its authors' layout, and config.json of one in transformers' layout",
                fix="use the config.json of this checkpoint, which names the way to convert it",
            )
        if _PACKED.search(stored.key):
            raise layouts.quantized(f"tensor {stored.key!r} says that the weights are quantized", "")

    def _check_one(self, name: str, shape: tuple[int, ...]) -> None:
        stored = self.tensors.get(name)
        if stored is None:
            raise CheckpointError(f"the checkpoint has no tensor {name!r}", fix=self._where(name))
        # Packed weights have other shapes too: the dtype tells more.
        if stored.dtype not in _DTYPES:
            raise CheckpointError(
                f"tensor {stored.key!r} is stored as {stored.dtype}; read are {', '.join(_DTYPES)}",
                fix="use the checkpoint that was not quantized",
            )
        if len(shape) == 4 and stored.shape == (shape[0], *shape[2:], shape[1]) != shape:
            raise CheckpointError(
                f"tensor {stored.key!r} has shape {list(stored.shape)}, channels last, as MLX stores it",
                fix="give --model the checkpoint that it was converted from",
            )
        if stored.shape != shape:
            raise CheckpointError(
                f"tensor {stored.key!r} has shape {list(stored.shape)}, but config.json makes it {list(shape)}",
                fix=f"use the config.json of this checkpoint in {self.folder}",
            )

    def _where(self, name: str) -> str:
        if name == "lm_head.weight":
            return (
                'if the model\'s output weights are its input embeddings, write "tie_word_embeddings": true into config.json; '
                "else download the checkpoint again"
            )
        return f"download the checkpoint again, or check that {self.folder / 'config.json'} belongs to it"

    def load(self, name: str) -> torch.Tensor:
        """One tensor, in the dtype it is stored in."""
        stored = self.tensors[name]
        with safe_open(stored.file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(stored.key)
        return tensor

    def stream(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors one after another, each shard opened once."""
        with ExitStack() as stack:
            open_files: dict[Path, Any] = {}
            for name in names:
                stored = self.tensors[name]
                if stored.file not in open_files:
                    open_files[stored.file] = stack.enter_context(safe_open(stored.file, framework="pt"))
                yield name, open_files[stored.file].get_tensor(stored.key)


def read_text(path: Path) -> str:
    """A UTF-8 text.

    Raises:
        CheckpointError: the file is not one.
    """
    return documents.read_text(path, error=CheckpointError, fix="download the checkpoint again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is not one.
    """
    return documents.read_object(path, error=CheckpointError, fix="download the checkpoint again")
