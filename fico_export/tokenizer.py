"""tokenizer.json, read and used within bounds: it came with a download, and the library that runs it cannot be interrupted.

A file that would make a text grow many times over is refused when it is read. Patterns that search for ever are given up on: the
library goes on with them in the background, but nobody waits.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenizers import Tokenizer

from fico_export import documents
from fico_export.errors import ConfigError, InputError

MAX_TEXT = 2**22
"""Characters of the longest text that is encoded."""

MAX_GROWTH = 256
"""How many times longer the steps of a tokenizer may make a text."""

MAX_SECONDS = 20.0
"""How long an encoding is waited for; a prompt takes milliseconds."""

_MAX_TOKEN = 2**14  # characters of an entry of the vocabulary
_MAX_PART = 256  # characters of what is put into texts besides: for what is unknown, around words
_MAX_SPECIAL = 1024  # ids that are put around a text
_MAX_EXPANSION = 4  # of steps that turn a character into its bytes, or into its parts

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Bounded:
    """A tokenizer and what is known of it.

    Attributes:
        tokenizer: the library's own; to decode, and to look up tokens.
        growth: how many times longer its steps can make a text.
        slow: whether it may take long: it searches by regular expressions of its file, or words by their parts.
    """

    tokenizer: Tokenizer
    growth: float
    slow: bool

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The text as token ids.

        Raises:
            InputError: the text is too long, or it takes too long.
        """
        most = int(min(MAX_TEXT, 16 * MAX_TEXT / self.growth))
        if len(text) > most:
            raise InputError(
                f"the text has {len(text):,} characters, and this tokenizer takes {most:,}", fix="shorten it"
            )

        def encoded() -> Any:
            # Of its two ways the one for several texts lets other threads run.
            return self.tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]

        try:
            found = (
                _in_time(encoded)
                if self.slow
                else self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
            )
        except TimeoutError as error:
            raise InputError(
                f"tokenizer.json takes over {MAX_SECONDS:.0f} s for a text of {len(text):,} characters",
                fix="shorten the text, or use the tokenizer.json that was published with the checkpoint",
            ) from error
        except (
            BaseException
        ) as error:  # the library raises bare Exception, and a class of its own for its panics
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise InputError(
                f"tokenizer.json fails on this text: {error}",
                fix="use the tokenizer.json that was published with the checkpoint",
            ) from error
        ids: list[int] = found.ids
        return ids


def read(text: str, place: str, *, error: type[ConfigError] = ConfigError, fix: str) -> Bounded:
    """The tokenizer that a tokenizer.json describes, which neither cuts nor pads.

    Args:
        text: the content of the file.
        place: names it in errors.
        error: kind of the error to raise.
        fix: what to do where it cannot be used.

    Raises:
        ConfigError: of the kind `error`: it is no tokenizer.json, or one whose texts would grow without bounds.
    """
    content = documents.parse_object(text, place, error=error, fix=fix)
    try:
        growth, slow = _growth(content), _is_slow(content)
        _check_sizes(content)
        tokenizer = Tokenizer.from_str(text)
        # One that was saved after training may cut or pad every text.
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except (
        BaseException
    ) as failure:  # the library raises bare Exception, and a class of its own for its panics
        if isinstance(failure, KeyboardInterrupt | SystemExit):
            raise
        raise error(f"{place} cannot be read: {' '.join(str(failure).split())[:300]}", fix=fix) from failure
    return Bounded(tokenizer, growth, slow)


def _in_time(work: Callable[[], ResultT]) -> ResultT:
    """What the work gives; it goes on in the background where it takes too long.

    Raises:
        TimeoutError: it does.
    """
    made: list[ResultT] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:  # for who waits
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    if failed:
        raise failed[0]
    if not made:
        raise TimeoutError
    return made[0]


# ---- what a file can make of a text


def _growth(content: dict[str, Any]) -> float:
    """How many times longer a text can become.

    Raises:
        ValueError: over `MAX_GROWTH` times.
    """
    growth = 1.0
    for part in ("normalizer", "pre_tokenizer"):
        for step in _steps(content.get(part)):
            growth *= _step_growth(step)
            if growth > MAX_GROWTH:
                raise ValueError(f"its {part} makes a text over {MAX_GROWTH} times longer")
    decoding = 1.0
    for step in _steps(content.get("decoder")):
        if _by_pattern(step):
            raise ValueError("its decoder searches by a regular expression, which may take for ever")
        decoding *= _step_growth(step)
    if decoding > MAX_GROWTH:
        raise ValueError(f"its decoder makes a text over {MAX_GROWTH} times longer")
    return growth


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, those of sequences in sequences too."""
    if not isinstance(part, dict):
        return
    within = [part.get(name) for name in ("normalizers", "pretokenizers", "decoders")]
    lists = [steps for steps in within if isinstance(steps, list)]
    if not lists:
        yield part
    for step in (step for steps in lists for step in steps):
        yield from _steps(step)


def _step_growth(step: dict[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Replace":
        pattern, written = step.get("pattern"), len(str(step.get("content", "")))
        found = pattern.get("String") if isinstance(pattern, dict) else None
        # A pattern may find what is empty, between all characters.
        return max(1.0, written / len(found)) if isinstance(found, str) and found else 1.0 + written
    if kind in ("Prepend", "Metaspace"):
        for name in ("prepend", "replacement"):
            _require_part(name, step.get(name))
        return 1.0
    if kind == "Precompiled":
        return _longest_mapping(step.get("precompiled_charsmap"))
    # A character of CJK is given spaces, a Hangul syllable its letters, any its bytes: each can be so once.
    return _MAX_EXPANSION if kind in ("ByteLevel", "NFD", "NFKD", "NFKC", "BertNormalizer", "Nmt") else 1.0


def _longest_mapping(encoded: Any) -> float:
    """Of SentencePiece's table: the longest text that stands for a character."""
    if not isinstance(encoded, str) or not encoded:
        return 1.0
    table = base64.b64decode(encoded)
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return float(max(1, *(len(text.decode(errors="replace")) for text in texts.split(b"\0"))))


def _is_slow(content: dict[str, Any]) -> bool:
    model = content.get("model")
    longest_word = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if isinstance(longest_word, int) and longest_word > _MAX_PART:
        return True
    return any(
        _by_pattern(step) for part in ("normalizer", "pre_tokenizer") for step in _steps(content.get(part))
    )


def _by_pattern(step: dict[str, Any]) -> bool:
    pattern = step.get("pattern")
    return isinstance(pattern, dict) and "Regex" in pattern


def _check_sizes(content: dict[str, Any]) -> None:
    """Look through the texts that stand for a character or for nothing.

    Raises:
        ValueError: one is too long, or too many ids are put around a text.
    """
    model = content.get("model")
    model = model if isinstance(model, dict) else {}
    for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        _require_part(name, model.get(name))
    vocabulary = model.get("vocab")
    entries = [entry[0] if isinstance(entry, list) and entry else entry for entry in vocabulary or ()]
    if isinstance(unknown := model.get("unk_id"), int) and 0 <= unknown < len(entries):
        _require_part("unknown token", entries[unknown])
    added = content.get("added_tokens")
    entries += [token.get("content") for token in added or () if isinstance(token, dict)]
    longest = max((len(entry) for entry in entries if isinstance(entry, str)), default=0)
    if longest > _MAX_TOKEN:
        raise ValueError(f"a token of {longest} characters")
    for processor in _processors(content.get("post_processor")):
        _check_template(processor)


def _require_part(name: str, text: Any) -> None:
    if isinstance(text, str) and len(text) > _MAX_PART:
        raise ValueError(f"{name} of {len(text)} characters")


def _processors(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        within = part.get("processors")
        for processor in within if isinstance(within, list) else ():
            yield from _processors(processor)


def _check_template(processor: dict[str, Any]) -> None:
    """Look through the special tokens that a post-processor puts around a text."""
    tokens = processor.get("special_tokens")
    if processor.get("type") != "TemplateProcessing" or not isinstance(tokens, dict):
        return
    for side in ("single", "pair"):
        count = 0
        pieces = processor.get(side)
        for piece in pieces if isinstance(pieces, list) else ():
            special = piece.get("SpecialToken") if isinstance(piece, dict) else None
            name = special.get("id") if isinstance(special, dict) else None
            if name is None:
                continue
            token = tokens.get(name) if isinstance(name, str) else None
            ids = token.get("ids") if isinstance(token, dict) else None
            count += len(ids) if isinstance(ids, list) else _MAX_SPECIAL + 1
        if count > _MAX_SPECIAL:
            raise ValueError(
                f"its post_processor puts tokens without ids, or over {_MAX_SPECIAL} ids, around a text"
            )
