"""Messages to token ids, and token ids back to text as they come.

Ids equal those of transformers' ``AutoProcessor.apply_chat_template(..., tokenize=True)``, text equals
``tokenizer.decode(ids, skip_special_tokens=True)``; neither torch nor transformers is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import Tokenizer

from fico_export.errors import ConfigError, InputError

LLAVA_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role != 'system' %}{{ message.role.upper() + ': ' }}{% endif %}
    {%- for part in message.content if part.type == 'image' %}{{ image_token + '\\n' }}{% endfor %}
    {%- for part in message.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}
"""
"""LLaVA-1.5's own form, for a checkpoint that brings no template: ``USER: <image>\\n… ASSISTANT:``."""

_BYTE_TOKEN = re.compile(r"<0x..>")


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that mean something to the model rather than to the reader."""

    image_token: str
    image_token_id: int
    bos_token: str | None
    eos_token: str | None
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Message:
    """One turn: its pictures come before its text.

    Args:
        role: ``system``, ``user`` or ``assistant``.
        text: what was said.
        images: how many pictures the turn shows.
    """

    role: str
    text: str
    images: int = 0


class PromptFormatter:
    """Turns messages into the text and the token ids that the checkpoint was trained on.

    Args:
        tokenizer_json: the text of ``tokenizer.json``.
        chat_template: the checkpoint's jinja2 template; None takes `LLAVA_TEMPLATE`.
        special: the tokens named by the checkpoint's configs.

    Raises:
        ConfigError: the tokenizer or the template cannot be read, or the image token is not the tokenizer's.
    """

    def __init__(self, tokenizer_json: str, chat_template: str | None, special: SpecialTokens) -> None:
        self.special = special
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ConfigError(
                f"tokenizer.json cannot be read: {error}",
                mend="export the checkpoint again with its own tokenizer.json",
            ) from error
        # A tokenizer.json saved after training may cut or pad every text.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        found = self.tokenizer.token_to_id(special.image_token)
        if found != special.image_token_id:
            raise ConfigError(
                f"the tokenizer's id of {special.image_token!r} is {found}, the model's is {special.image_token_id}",
                mend="use tokenizer.json and config.json of one checkpoint",
            )
        try:
            self._template = _environment().from_string(
                LLAVA_TEMPLATE if chat_template is None else chat_template
            )
        except jinja2.TemplateError as error:
            raise ConfigError(
                f"the chat template cannot be read: {error}",
                mend="correct chat_template.jinja (or .json) and export again",
            ) from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt as text, with one image token for each picture.

        Args:
            messages: the turns so far.
            add_generation_prompt: end with the words that begin the model's answer.

        Raises:
            InputError: a text holds the image token, or is not Unicode.
            ConfigError: the template refuses these messages.
        """
        for message in messages:
            self._check_text(message.text)
        content = [
            {
                "role": message.role,
                "content": [{"type": "image"}] * message.images + [{"type": "text", "text": message.text}],
            }
            for message in messages
        ]
        try:
            return self._template.render(
                messages=content,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.special.bos_token or "",
                eos_token=self.special.eos_token or "",
                image_token=self.special.image_token,
                tools=None,
                documents=None,
            )
        except Exception as error:  # a template is a program: it fails in any way that Python does
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(
                f"the chat template refuses messages of roles [{roles}]: {error}",
                mend="give turns that it takes (most: user and assistant in turn), or correct the checkpoint's template",
            ) from error

    def encode(self, messages: Sequence[Message], tokens_per_image: int) -> list[int]:
        """The prompt as token ids, its image tokens repeated to as many as the graph gives visual tokens.

        Args:
            messages: the turns so far, the last one asking.
            tokens_per_image: visual tokens of one picture, K.

        Raises:
            InputError: as `render`, or the template shows more or fewer pictures than the messages have.
            ConfigError: as `render`.
        """
        text = self.render(messages)
        begins = bool(self.special.bos_token) and text.startswith(str(self.special.bos_token))
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=not begins).ids
        image_id = self.special.image_token_id
        wanted, shown = sum(message.images for message in messages), ids.count(image_id)
        if wanted != shown:
            raise InputError(
                f"the messages have {wanted} pictures, the prompt made of them shows {shown}",
                mend="put the pictures in a turn of the role user; a template may drop those of other roles",
            )
        return [token for id_ in ids for token in [id_] * (tokens_per_image if id_ == image_id else 1)]

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for one answer."""
        return StreamDecoder(self.tokenizer)

    def _check_text(self, text: str) -> None:
        if self.special.image_token in text:
            raise InputError(
                f"the text holds {self.special.image_token!r}, which stands for a picture",
                mend="give pictures by --image (in Python images=), and drop the marker from the text",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text is not Unicode at character {error.start}", mend="give the text as UTF-8"
            ) from error


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
            raise ConfigError(f"stop strings are {stops!r}", mend="give a list of strings that are not empty")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._hit = False

    def push(self, text: str) -> tuple[str, bool]:
        """Take text; returns what may be shown, and whether a stop string was hit (now or before)."""
        if self._hit:
            return "", True
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


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the words to train on; a prompt has them like any others."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The jinja2 that chat templates are written for; sandboxed, as they come with a download."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # jinja2's own escapes <, > and & for HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
