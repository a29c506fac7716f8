"""A conversation as a file: JSON Lines that other tools read as chat messages, or Markdown for people."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fico_export.errors import ConfigError, DiskError

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Said:
    """A whole turn.

    Args:
        question: the user's text.
        images: names of the images shown with it, as they were given.
        answer: the model's text.
    """

    question: str
    images: Sequence[str]
    answer: str


def as_json_lines(system: str | None, turns: Sequence[Said]) -> str:
    """One message a line, in the form of chat messages: {"role": …, "content": [{"type": "image", …}, {"type": "text", …}]}."""
    messages = [] if system is None else [_message("system", system)]
    for turn in turns:
        messages += [_message("user", turn.question, turn.images), _message("assistant", turn.answer)]
    return "".join(json.dumps(message) + "\n" for message in messages)


def as_markdown(title: str, system: str | None, turns: Sequence[Said]) -> str:
    """A heading for each message, images as links."""

    def parts() -> Iterator[str]:
        yield f"# {title}"
        if system is not None:
            yield f"## System\n\n{system}"
        for turn in turns:
            links = [f"![image]({_link(name)})" for name in turn.images]
            yield "\n\n".join(["## User", *links, turn.question])
            yield f"## Assistant\n\n{turn.answer.strip()}"

    return "\n\n".join(parts()) + "\n"


def save(path: Path, title: str, system: str | None, turns: Sequence[Said]) -> None:
    """Write a conversation to a new file, whole or not at all.

    Raises:
        ConfigError: nothing was said, the name ends in neither .jsonl nor .md, something is there, or it cannot be written.
        DiskError: the disk is full.
    """
    forms = {".jsonl": lambda: as_json_lines(system, turns), ".md": lambda: as_markdown(title, system, turns)}
    if path.suffix.lower() not in forms:
        raise ConfigError(
            f"/save {path}: a conversation is saved as .jsonl (JSON Lines) or .md (Markdown)",
            fix=f"/save {path.with_suffix('.jsonl') if path.name else 'conversation.jsonl'}",
        )
    if not turns:
        raise ConfigError("/save: nothing was said yet", fix="ask something first")
    try:
        _write_new(path, forms[path.suffix.lower()]().encode())
    except FileExistsError as error:
        raise ConfigError(
            f"/save: {path} is there already", fix="give another name, or remove it first"
        ) from error
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        kind = DiskError if getattr(error, "errno", None) in _FULL else ConfigError
        raise kind(
            f"/save: cannot write {path}: {what}", fix="give a file in a folder that you may write to"
        ) from error


def _message(role: str, text: str, images: Sequence[str] = ()) -> dict[str, Any]:
    shown = [{"type": "image", "path": name} for name in images]
    return {"role": role, "content": [*shown, {"type": "text", "text": text}]}


def _link(name: str) -> str:
    return quote(os.fsencode(name), safe="/:,;=+~@")


def _write_new(path: Path, content: bytes) -> None:
    """A file beside it is written and then given the name, which fails where the name is taken."""
    partial = path.with_name(f".{path.name[:200]}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content)
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with path.open("xb"):  # a disk without links: take the name, then replace what holds it
                pass
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
