"""generation_config.json of a checkpoint, and the tokens that end an answer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from fico_export.bundle.generation_config import FILE_NAME, not_supported, parse
from fico_export.errors import CheckpointError
from fico_export.models.weights import read_json


def generation_config(folder: Path, raw: dict[str, Any], config: Any) -> tuple[dict[str, Any], list[str]]:
    """What a bundle has for a generation_config.json, and what should be said about it.

    Args:
        folder: of the checkpoint.
        raw: content of its config.json.
        config: the same as transformers reads it.

    Raises:
        CheckpointError: a value is of the wrong type or out of its range.
    """
    content = _content(folder, raw)
    found, warnings = eos_ids(folder, raw, config)
    if content.get("eos_token_id") is None and found:
        content["eos_token_id"] = found if len(found) > 1 else found[0]
    fix = f"correct it in {folder / FILE_NAME}, or use the file that was published with this checkpoint"
    parse(content, folder / FILE_NAME, error=CheckpointError, fix=fix)
    if left_out := not_supported(content):
        listed = ", ".join(f"{name} {value!r:.60}" for name, value in left_out.items())
        warnings.append(
            f"{FILE_NAME} asks for {listed}: generate follows it, a bundle does not, and its answers differ then; "
            "set it to null there if you do without"
        )
    return content, warnings


def eos_ids(folder: Path, raw: dict[str, Any], config: Any) -> tuple[list[int], list[str]]:
    """Ids of the tokens that end an answer, wherever they stand, and what should be said about them.

    Arguments and errors as for `generation_config`.
    """
    text = raw.get("text_config")
    places = [
        (FILE_NAME, _content(folder, raw).get("eos_token_id")),
        ("config.json", raw.get("eos_token_id")),
        ("text_config of config.json", text.get("eos_token_id") if isinstance(text, dict) else None),
    ]
    for place, value in places:
        if value is None or value == []:
            continue
        ids = value if isinstance(value, list) else [value]
        if len(ids) > 1024 or not all(type(id_) is int and 0 <= id_ < 2**31 for id_ in ids):
            raise CheckpointError(
                f"eos_token_id of {place} is {value!r:.60}, not the id of a token or a list of them",
                fix=f"write the id of the token that ends an answer to eos_token_id of {folder / FILE_NAME}",
            )
        return ids, []
    where = f"write its id to eos_token_id of {folder / FILE_NAME} and export again"
    default = getattr(config.text_config, "eos_token_id", None)  # of the decoder's class in transformers
    if isinstance(default, int):
        return [default], [
            (
                f"no config names a token that ends an answer: {default}, the default of a {config.text_config.model_type} "
                f"decoder, is taken; if it is another, {where}"
            )
        ]
    return [], [
        f"no config names a token that ends an answer: nothing will ever stop one before its last token or a stop string; {where}"
    ]


def _content(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json, or what transformers makes of config.json where there is none."""
    if (folder / FILE_NAME).exists():
        return read_json(folder / FILE_NAME)
    try:
        made: dict[str, Any] = GenerationConfig.from_model_config(copy.deepcopy(raw)).to_diff_dict()
    except Exception as error:  # transformers checks some values, and raises what it likes
        raise CheckpointError(
            f"config.json holds settings of generation that cannot be used: {' '.join(str(error).split())}",
            fix=f"write those that are meant to {folder / FILE_NAME}, or an empty object {{}}",
        ) from error
    made.pop("_from_model_config", None)
    return made
