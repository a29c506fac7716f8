"""Which files hold a checkpoint's weights: those that transformers reads, in its order.

1. the file that `transformers_weights` in config.json names
2. model.safetensors, also where an index lies beside it
3. the shards that model.safetensors.index.json names
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fico_export import documents
from fico_export.errors import CheckpointError
from fico_export.models.parts import identify

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_AGAIN = "download the checkpoint again"
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class WeightFiles:
    """The files of weights, and what names them.

    Attributes:
        paths: of the files, sorted by name.
        index: name of the index that lists them, or None for a single file.
        promised: names of the tensors that the index lists.
    """

    paths: tuple[Path, ...]
    index: str | None = None
    promised: tuple[str, ...] = ()


def find(folder: Path) -> WeightFiles:
    """The files that transformers reads.

    Raises:
        CheckpointError: there are none, the index is damaged, or a shard is missing.
    """
    named = _named_in_config(folder)
    if named is not None:
        return _sharded(folder, named) if named.endswith(".json") else _single(folder, named)
    if any(_DISTRIBUTED.match(path.name) for path in folder.glob("shard-*.safetensors")):
        raise CheckpointError(
            f"{folder} holds a checkpoint that was saved in pieces by several processes (shard-00000-model-…)",
            fix=f"save it as one with transformers: {identify.resave()}",
        )
    if (folder / SINGLE).is_file():
        return WeightFiles((folder / SINGLE,))
    if (folder / INDEX).is_file():
        return _sharded(folder, INDEX)
    raise identify.no_weights(folder)


def _named_in_config(folder: Path) -> str | None:
    """The value of `transformers_weights`, which wins over the usual names."""
    place = folder / "config.json"
    if not place.is_file():
        return None
    config = documents.read_object(place, error=CheckpointError, fix=_AGAIN)
    name = config.get("transformers_weights")
    if name is None:
        return None
    plain = isinstance(name, str) and _is_plain(name)
    if not plain or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(
            f"transformers_weights in {place} is {name!r}, not the name of a .safetensors file or its index in the folder",
            fix=f"put the file into {folder} and its name there, or remove transformers_weights from config.json",
        )
    return str(name)


def _single(folder: Path, name: str) -> WeightFiles:
    if not (folder / name).is_file():
        raise CheckpointError(
            f"{name!r}, which transformers_weights in config.json names, is missing",
            fix=f"download it into {folder}, or remove transformers_weights from config.json",
        )
    return WeightFiles((folder / name,))


def _sharded(folder: Path, index: str) -> WeightFiles:
    place = folder / index
    content = documents.read_object(place, error=CheckpointError, fix=_AGAIN)
    shards: Any = content.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(n, str) for n in shards.values()):
        raise CheckpointError(f"{place} has no weight_map", fix=_AGAIN)
    names = sorted(set(shards.values()))
    for name in names:
        # An index is data: it must not reach out of its folder.
        if not _is_plain(name):
            raise CheckpointError(
                f"{index} names the shard {json.dumps(name)}, which is no name of a file in {folder}",
                fix=_AGAIN,
            )
        if not (folder / name).is_file():
            raise CheckpointError(
                f"shard {name!r} named by {index} is missing", fix=f"download it into {folder}"
            )
    return WeightFiles(tuple(folder / name for name in names), index, tuple(shards))


def _is_plain(name: str) -> bool:
    """Whether it is the name of a file, with no folder in it."""
    return name not in ("", ".", "..") and not re.search(r"[/\\\x00]", name)
