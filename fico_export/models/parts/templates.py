"""The chat template of a checkpoint, searched where transformers searches, in its order.

That of the processor comes first: processor_config.json, chat_template.json, chat_template.jinja with the folder of named ones.
Without any, there is that of the tokenizer, which is the language model's own and may know nothing of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fico_export.errors import CheckpointError
from fico_export.models.weights import read_json, read_text

JINJA = "chat_template.jinja"
JSON = "chat_template.json"
NAMED = "additional_chat_templates"
PROCESSOR = "processor_config.json"
TOKENIZER = "tokenizer_config.json"
DEFAULT = "default"


@dataclass(frozen=True)
class Found:
    """A chat template, or None where a checkpoint has none.

    Attributes:
        template: its text.
        instead: how to put another one in its place.
        warnings: what an export should say about it.
    """

    template: str | None
    instead: str
    warnings: list[str]


def find(folder: Path, processor: dict[str, Any], tokenizer: dict[str, Any]) -> Found:
    """The template to use.

    Args:
        folder: of the checkpoint.
        processor: content of processor_config.json.
        tokenizer: content of tokenizer_config.json.

    Raises:
        CheckpointError: several templates and none of them is the default, or what stands for a template is none.
    """
    found = _places(folder, processor, tokenizer)
    instead = f"write the template to use to {folder / JINJA}"
    if not found:
        text = f"{folder} has no chat template: prompts take LLaVA-1.5's form, 'USER: <image>\\n… ASSISTANT:'"
        return Found(
            None, instead, [f"{text}; if the model was trained on another, {instead} and export again"]
        )
    (first, content), *rest = found
    if first in (PROCESSOR, JSON):
        instead += f", and delete chat_template from {folder / first}"
    template = _default(content)
    if not isinstance(template, str):
        raise CheckpointError(
            f"the chat template in {first} of {folder} is {_described(content)}", fix=instead
        )
    others = [place for place, content in rest if _default(content) not in (None, template)]
    text = f"{folder} has chat templates that differ: {first} is taken, as transformers does, and not {' or '.join(others)}"
    return Found(template, instead, [f"{text}; delete those that are wrong"] if others else [])


def _places(folder: Path, processor: dict[str, Any], tokenizer: dict[str, Any]) -> list[tuple[str, Any]]:
    """What stands for a template: (place, a text or named texts), the one to use first."""
    places: list[tuple[str, Any]] = []
    if processor.get("chat_template") is not None:
        places.append((PROCESSOR, processor["chat_template"]))
    named = {path.stem: read_text(path) for path in sorted((folder / NAMED).glob("*.jinja"))}
    if (folder / JSON).exists():
        if named and not places:
            raise CheckpointError(
                f"{folder} has both {JSON} and {NAMED}, which transformers refuses too: one of them is of another time",
                fix=f"delete the one that is wrong, or write the template to use to {folder / JINJA} and delete both",
            )
        content = read_json(folder / JSON).get("chat_template")
        places += [(JSON, content)] if content is not None else []
    if (folder / JINJA).exists():
        places.append((JINJA, read_text(folder / JINJA)))
    if named:
        places.append((NAMED, named))
    if tokenizer.get("chat_template") is not None:
        places.append((TOKENIZER, tokenizer["chat_template"]))
    return places


def _default(content: Any) -> Any:
    """The template to use of what a file holds: a text, or texts by name in either of the forms there are."""
    if isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
        content = {entry.get("name"): entry.get("template") for entry in content}
    return content.get(DEFAULT) if isinstance(content, dict) else content


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"one of {', '.join(map(repr, content))[:200]}, none of them a text named {DEFAULT!r}"
    return f"a {type(content).__name__}, not one text or texts of which one is named {DEFAULT!r}"
