"""A Hugging Face checkpoint folder: finds its safetensors, names its tensors, reads them one at a time.

Never pickle, never remote code. Two key layouts exist in public LLaVA checkpoints, and transformers 5 saves a third;
all are read as one: `vision_tower.…`, `multi_modal_projector.…`, `language_model.layers.…`, `lm_head.weight`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fico_export import documents
from fico_export.errors import CheckpointError

_RENAMES = (
    (re.compile(r"^model\."), ""),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "language_model."),
    (re.compile(r"^vision_tower\.vision_model\."), "vision_tower."),
)
_DTYPES = ("BF16", "F16", "F32", "F64")
_BUFFER = re.compile(r"\.rotary_emb\.inv_freq$")  # older checkpoints store it; it follows from the config


def canonical(key: str) -> str:
    """The one name of a checkpoint key."""
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies, from which byte on and in how many, its dtype in safetensors' words, and its shape."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Checkpoint:
    """The tensors of a checkpoint folder by canonical name.

    Raises:
        CheckpointError: no safetensors, or shards that are missing, truncated or at odds with their index.
    """

    def __init__(self, folder: Path, tied: Mapping[str, str] | None = None) -> None:
        """Read the headers; `tied` names tensors that may be absent and whose they then are."""
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        index = _read_index(folder)
        self.files = _shards(folder, index)
        for file in self.files:
            self.tensors.update(_read_header(file))
        if index is not None:
            missing = sorted(k for k in index if canonical(k) not in self.tensors)
            if missing:
                raise CheckpointError(
                    f"model.safetensors.index.json names {len(missing)} tensors that no shard holds, first {missing[0]!r}",
                    fix=f"download the checkpoint again: the shards in {folder} are from another revision than the index",
                )
        for name, source in (tied or {}).items():
            if name not in self.tensors and source in self.tensors:
                self.tensors[name] = self.tensors[source]

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a checkpoint whose tensors are not those of its config.

        A tensor of the decoder that the config has no place for is one too: a layer, a bias or a scale left out
        would change every answer without a word.

        Raises:
            CheckpointError: naming the first such tensor.
        """
        for name, shape in expected.items():
            stored = self.tensors.get(name)
            if stored is None:
                raise CheckpointError(
                    f"the checkpoint has no tensor {name!r}",
                    fix=f"download the checkpoint again, or check that {self.folder / 'config.json'} belongs to it",
                )
            if stored.shape != shape:
                raise CheckpointError(
                    f"tensor {stored.key!r} has shape {list(stored.shape)}, but config.json makes it {list(shape)}",
                    fix=f"use the config.json of this checkpoint in {self.folder}",
                )
            if stored.dtype not in _DTYPES:
                raise CheckpointError(
                    f"tensor {stored.key!r} is stored as {stored.dtype}; read are {', '.join(_DTYPES)}",
                    fix="use the checkpoint that was not quantized",
                )
        for name, stored in self.tensors.items():
            if name.startswith("language_model.") and name not in expected and not _BUFFER.search(name):
                raise CheckpointError(
                    f"the checkpoint has a tensor {stored.key!r} that config.json has no place for",
                    fix=f"use the config.json of this checkpoint in {self.folder}, and weights that were not quantized",
                )

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


def _read_index(folder: Path) -> dict[str, str] | None:
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return None
    index = read_json(path).get("weight_map")
    # Path(...).name: an index is data and must not reach out of its folder.
    named = isinstance(index, dict) and all(isinstance(n, str) and Path(n).name for n in index.values())
    if not index or not named:
        raise CheckpointError(f"{path} has no weight_map", fix="download the checkpoint again")
    return {key: Path(name).name for key, name in index.items()}


def _shards(folder: Path, index: dict[str, str] | None) -> list[Path]:
    if index is not None:
        files = [folder / name for name in sorted(set(index.values()))]
        for file in files:
            if not file.is_file():
                raise CheckpointError(
                    f"shard {file.name} named by model.safetensors.index.json is missing",
                    fix=f"download it into {folder}",
                )
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise CheckpointError(
            f"{folder} holds only pickled weights, which can run code when loaded and are not read",
            fix='convert them on a machine you trust: `python -c "from transformers import '
            "LlavaForConditionalGeneration as M; M.from_pretrained('IN').save_pretrained('OUT')\"`",
        )
    raise CheckpointError(
        f"{folder} holds no model.safetensors and no model.safetensors.index.json",
        fix="point --model at the folder with config.json and the .safetensors files",
    )


def _read_header(file: Path) -> dict[str, Stored]:
    try:
        with safe_open(file, framework="pt") as opened:
            stored = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - no dict, and iterable by keys() only
            places = _places(file)
            return {
                canonical(key): Stored(file, key, entry.get_dtype(), tuple(entry.get_shape()), *places[key])
                for key, entry in stored.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file.name} is truncated or damaged: {error}", fix=f"download it again into {file.parent}"
        ) from error


def _places(file: Path) -> dict[str, tuple[int, int]]:
    """First byte in the file and number of bytes of each tensor, of a file whose header was found good.

    The library does not tell them. Layout: https://huggingface.co/docs/safetensors#format
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {
        key: (8 + length + begin, end - begin)
        for key, entry in header.items()
        for begin, end in [entry["data_offsets"]]
    }
