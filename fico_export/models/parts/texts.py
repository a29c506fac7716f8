"""The text files of a checkpoint: tokenizer, special tokens, chat template, configs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from fico_export.bundle.manifest import Tokens
from fico_export.errors import CheckpointError
from fico_export.models.parts import special_tokens, stops, templates
from fico_export.models.source import Files
from fico_export.models.weights import read_json, read_text


class _Added(BaseModel):
    id: Annotated[int, Field(strict=True, ge=0, lt=2**32)]
    content: Annotated[str, Field(strict=True, max_length=special_tokens.MAX_LENGTH)]


_ADDED = TypeAdapter(list[_Added])


def tokens(folder: Path, raw: dict[str, Any], config: Any) -> Tokens:
    """The special tokens that the configs and the tokenizer's files name.

    Args:
        folder: of the checkpoint.
        raw: content of its config.json.
        config: the same as transformers reads it.

    Raises:
        CheckpointError: a file is missing or damaged, or the image token is not the tokenizer's.
    """
    tokenizer = read_json(_tokenizer_file(folder))
    try:
        added = {
            token.id: token.content for token in _ADDED.validate_python(tokenizer.get("added_tokens", []))
        }
    except ValidationError as error:
        raise _wrong("tokenizer.json", "added_tokens", error) from error
    image_id = config.image_token_id
    if image_id not in added:
        raise CheckpointError(
            f"image token id {image_id} of config.json is no added token of tokenizer.json",
            fix="use the tokenizer.json of this checkpoint",
        )
    video_id = getattr(config, "video_token_id", -1)
    named, additional = special_tokens.find(folder)
    eos_ids = stops.eos_ids(folder, raw, config)[0]
    try:
        return Tokens(
            image=added[image_id],
            image_id=image_id,
            video=added.get(video_id),
            video_id=video_id if video_id in added else None,
            bos=named.get("bos_token"),
            eos=named.get("eos_token"),
            eos_ids=eos_ids,
            named=named,
            additional=additional,
        )
    except ValidationError as error:  # more tokens, or ids, than a manifest holds
        raise _wrong("the tokenizer's configs", "special tokens", error) from error


def _wrong(place: str, key: str, failure: ValidationError) -> CheckpointError:
    first = failure.errors()[0]
    name = ".".join(map(str, (key, *first["loc"])))
    return CheckpointError(
        f"{name} of {place} is {first['input']!r:.60}: {first['msg']}",
        fix="use the tokenizer.json, tokenizer_config.json and generation_config.json of this checkpoint",
    )


def files(folder: Path, raw: dict[str, Any], config: Any) -> Files:
    """The text files that a bundle takes from a checkpoint; arguments and errors as for `tokens`."""
    settings = _optional_json(folder / "tokenizer_config.json")
    # transformers 5 nests the image processor in processor_config.json; older checkpoints keep it in a file of its own.
    processor = _optional_json(folder / "processor_config.json")
    preprocessor = processor.get("image_processor") or _optional_json(folder / "preprocessor_config.json")
    if not isinstance(preprocessor, dict):
        raise CheckpointError(
            f"image_processor of processor_config.json is {preprocessor!r:.60}, not an object",
            fix="use the processor_config.json of this checkpoint",
        )
    if not preprocessor:
        raise CheckpointError(
            f"{folder} has no preprocessor_config.json, so images cannot be prepared",
            fix="copy preprocessor_config.json (or processor_config.json) of the checkpoint into the folder",
        )
    chat = templates.find(folder, processor, settings)
    generation, warnings = stops.generation_config(folder, raw, config)
    return Files(
        tokenizer=read_text(_tokenizer_file(folder)),
        tokenizer_config=settings,
        chat_template=chat.template,
        config=raw,
        generation_config=generation,
        preprocessor=preprocessor,
        processor=processor,
        warnings=(*chat.warnings, *warnings),
        other_template=chat.instead,
    )


def with_processor_named(files: Files, name: str) -> Files:
    """The texts, with the image processor that transformers takes for this model type where none is named."""
    named, config = files.preprocessor, files.config
    if any(
        named.get(key) for key in ("image_processor_type", "feature_extractor_type", "video_processor_type")
    ):
        return files
    name = config.get("image_processor_type") or name
    return replace(files, preprocessor={**named, "image_processor_type": name})


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
