"""The text files of a checkpoint: tokenizer, special tokens, chat template, configs of generation and of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fico_export.bundle.manifest import Tokens
from fico_export.errors import CheckpointError
from fico_export.models.parts.checkpoint import read_json, read_text
from fico_export.models.parts.family import Files


def tokens(folder: Path, config: Any) -> Tokens:
    """The special tokens that config.json and the tokenizer's files name."""
    tokenizer = read_json(_tokenizer_file(folder))
    try:
        added = {token["id"]: token["content"] for token in tokenizer.get("added_tokens", [])}
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"added_tokens of tokenizer.json cannot be read: {error!r}",
            fix="use the tokenizer.json of this checkpoint",
        ) from error
    image_id = config.image_token_id
    if image_id not in added:
        raise CheckpointError(
            f"image token id {image_id} of config.json is no added token of tokenizer.json",
            fix="use the tokenizer.json of this checkpoint",
        )
    settings = _optional_json(folder / "tokenizer_config.json")
    generation = _optional_json(folder / "generation_config.json")
    eos = generation.get("eos_token_id", getattr(config.text_config, "eos_token_id", None))
    return Tokens(
        image=added[image_id],
        image_id=image_id,
        bos=_text(settings.get("bos_token")),
        eos=_text(settings.get("eos_token")),
        eos_ids=eos if isinstance(eos, list) else [] if eos is None else [eos],
    )


def files(folder: Path, config: dict[str, Any]) -> Files:
    """The text files that a bundle takes from a checkpoint."""
    settings = _optional_json(folder / "tokenizer_config.json")
    # transformers 5 nests the image processor in processor_config.json; older checkpoints keep it in a file of its own.
    processor = _optional_json(folder / "processor_config.json")
    preprocessor = processor.get("image_processor") or _optional_json(folder / "preprocessor_config.json")
    if not preprocessor:
        raise CheckpointError(
            f"{folder} has no preprocessor_config.json, so pictures cannot be prepared",
            fix="copy preprocessor_config.json (or processor_config.json) of the checkpoint into the folder",
        )
    return Files(
        tokenizer=read_text(_tokenizer_file(folder)),
        tokenizer_config=settings,
        chat_template=_chat_template(folder, settings),
        config=config,
        generation_config=_optional_json(folder / "generation_config.json"),
        preprocessor=preprocessor,
        processor=processor,
    )


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return read_text(jinja)
    template = _optional_json(folder / "chat_template.json").get(
        "chat_template", tokenizer_config.get("chat_template")
    )
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"chat_template is a {type(template).__name__}, not one text",
            fix=f"write the template to use to {jinja}",
        )
    return template


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no tokenizer.json",
            fix='make it from tokenizer.model: `python -c "from transformers import AutoTokenizer as T; '
            "T.from_pretrained('DIR').save_pretrained('DIR')\"`",
        )
    return path


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _text(token: str | dict[str, str] | None) -> str | None:
    """A special token is a string, or an object that holds one."""
    return token["content"] if isinstance(token, dict) else token
