"""The special tokens of a checkpoint by name, as transformers hands them to a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from fico_export import tokenizer
from fico_export.errors import CheckpointError
from fico_export.models.parts.transformers_quiet import quiet_transformers
from fico_export.models.weights import read_json, read_text

STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DEFAULTED = ("bos_token", "eos_token", "unk_token")  # what a class of tokenizers may bring itself
MAX_LENGTH = 4096
"""Characters of a token at most, as of a text of a manifest."""

_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def find(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The named special tokens, and the additional ones without a name.

    Raises:
        CheckpointError: a token is no text, or a file cannot be read.
    """
    settings, place = _merged(folder)
    named: dict[str, str] = {}
    for name, value in settings.items():
        switch = isinstance(value, bool) and name not in STANDARD  # as add_bos_token is
        if name.endswith("_token") and value is not None and not switch:
            named[name] = _text(name, value, place)
    extra = settings.get("extra_special_tokens") or []
    if isinstance(extra, dict):
        named |= {name: _text(name, value, place) for name, value in extra.items() if value is not None}
        extra = []
    additional = extra or settings.get("additional_special_tokens") or []
    if not isinstance(additional, list):
        raise CheckpointError(
            f"the additional special tokens of {place} are {additional!r:.60}, not a list",
            fix=f"use the {place} of this checkpoint",
        )
    if not settings.keys() >= set(_DEFAULTED):
        named = _of_class(folder) | named
    return named, [_text("an additional special token", value, place) for value in additional]


def _merged(folder: Path) -> tuple[dict[str, Any], str]:
    """The settings that name tokens, and the files they are of: the older file counts where the newer lists no added tokens."""
    config, older = (read_json(folder / name) if (folder / name).exists() else {} for name in _FILES)
    if "added_tokens_decoder" in config or not older:
        return config, _FILES[0]
    return config | older, " or ".join(_FILES)


def _of_class(folder: Path) -> dict[str, str]:
    """What transformers' class of this tokenizer brings for tokens that no file names.

    Raises:
        CheckpointError: tokenizer.json is beyond the bounds, or brings the library down; transformers would not notice.
    """
    path, fix = folder / "tokenizer.json", "use the tokenizer.json of this checkpoint"
    tokenizer.read(read_text(path), str(path), error=CheckpointError, fix=fix)
    quiet_transformers()
    try:
        opened = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return {name: str(token) for name, token in opened.special_tokens_map.items() if name in _DEFAULTED}
    except Exception:  # transformers cannot open every tokenizer.json that the tokenizers library can
        return {}


def _text(name: str, token: Any, place: str) -> str:
    """The text of a token, which is a string or an object that holds one as its content."""
    text = token.get("content") if isinstance(token, dict) else token
    fix = f"use the {place} of this checkpoint"
    if not isinstance(text, str):
        raise CheckpointError(f"{name} of {place} is {token!r:.60}, not a text", fix=fix)
    if len(text) > MAX_LENGTH:
        raise CheckpointError(
            f"{name} of {place} has {len(text)} characters, more than the {MAX_LENGTH} of a token", fix=fix
        )
    return text
