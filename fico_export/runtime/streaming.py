"""Token ids back to text as they come: text equals ``tokenizer.decode(ids, skip_special_tokens=True)``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from fico_export.errors import ConfigError

_BYTE_TOKEN = re.compile(r"<0x..>")


class StreamDecoder:
    """Text of token ids while they come; all of it together is the tokenizer's decoding of all ids.

    Each step decodes a window: the group of tokens given out last, then the pending. The group is there for
    what a decoder does at a text's start only, such as to drop the space before the first word.

    Byte tokens (``<0xE4>``) wait for the token after their run, not for a whole character: the decoder takes a
    run as one, and a run with one wrong byte is U+FFFD throughout, the characters before that byte included.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(id_ for id_, token in added.items() if token.special)
        self._group: list[int] = []
        self._group_text = ""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Take one token id; returns the text that it completes, often empty."""
        token = self._tokenizer.id_to_token(token_id)
        # A model's vocabulary may be padded beyond the tokenizer's; decoding skips such ids like special ones.
        # They must not become the window's group: it would have no text, and the next word would lose its space.
        if token is None or token_id in self._special:
            return ""
        self._pending.append(token_id)
        if _BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._decode(self._group + self._pending)
        if text.endswith("\ufffd"):  # of a byte-level tokenizer: the first bytes of a character
            return ""
        fresh = text[len(self._group_text) :]
        self._group, self._pending = self._pending, []
        self._group_text = self._decode(self._group)
        return fresh

    def flush(self) -> str:
        """The text that was held back; the next id begins a new text."""
        fresh = self._decode(self._group + self._pending)[len(self._group_text) :]
        self._group, self._group_text, self._pending = [], "", []
        return fresh

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


class StopStrings:
    """Cuts a stream of text at the first of some strings, which may come in pieces.

    Of two that overlap, the one that is complete first counts: how the text was cut into pieces changes nothing.

    Args:
        stops: the strings; none means that nothing is held back.

    Raises:
        ConfigError: a stop string is empty, or one string was given in place of a list.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or "" in stops:
            raise ConfigError(f"stop strings are {stops!r}", fix="give a list of strings that are not empty")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._hit = False

    def push(self, text: str) -> tuple[str, bool]:
        """Take text; returns what may be shown, and whether a stop string was hit (now or before)."""
        if self._hit:
            return "", True
        if not self._stops:
            return text, False
        buffer = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if found:
            self._held, self._hit = "", True
            return buffer[: min(found)[1]], True
        reach = min(self._longest - 1, len(buffer))
        held = next((n for n in range(reach, 0, -1) if self._begins_a_stop(buffer[-n:])), 0)
        cut = len(buffer) - held
        self._held = buffer[cut:]
        return buffer[:cut], False

    def flush(self) -> str:
        """The text that was held back; nothing follows a stop string."""
        held, self._held = self._held, ""
        return held

    def _begins_a_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
