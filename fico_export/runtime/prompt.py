"""Messages to token ids.

Ids equal those of transformers' ``AutoProcessor.apply_chat_template(..., tokenize=True)``; neither torch nor
transformers is needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import Tokenizer

from fico_export.bundle.manifest import Tokens
from fico_export.errors import ConfigError, InputError

_PROBE = "a question"

LLAVA_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role != 'system' %}{{ message.role.upper() + ': ' }}{% endif %}
    {%- for part in message.content if part.type == 'image' %}{{ image_token + '\\n' }}{% endfor %}
    {%- for part in message.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}
"""
"""LLaVA-1.5's own form, for a checkpoint that brings no template: ``USER: <image>\\n… ASSISTANT:``."""


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
        tokens: the special ones named by the checkpoint's configs.

    Raises:
        ConfigError: the tokenizer or the template cannot be read, or the image token is not the tokenizer's.
    """

    def __init__(self, tokenizer_json: str, chat_template: str | None, tokens: Tokens) -> None:
        self.tokens = tokens
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ConfigError(
                f"tokenizer.json cannot be read: {error}",
                fix="export the checkpoint again with its own tokenizer.json",
            ) from error
        # A tokenizer.json saved after training may cut or pad every text.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        found = self.tokenizer.token_to_id(tokens.image)
        if found != tokens.image_id:
            raise ConfigError(
                f"the tokenizer's id of {tokens.image!r} is {found}, the model's is {tokens.image_id}",
                fix="use tokenizer.json and config.json of one checkpoint",
            )
        try:
            self._template = _environment().from_string(
                LLAVA_TEMPLATE if chat_template is None else chat_template
            )
        except jinja2.TemplateError as error:
            raise ConfigError(
                f"the chat template cannot be read: {error}",
                fix="correct chat_template.jinja (or .json) and export again",
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
        try:
            return self._rendered(messages, self.content, add_generation_prompt)
        except Exception as error:  # a template is a program: it fails in any way that Python does
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(
                f"the chat template refuses messages of roles [{roles}]: {error}",
                fix="give turns that it takes (most: user and assistant in turn), or correct the checkpoint's template: "
                "write one that is right to its chat_template.jinja and export again",
            ) from error

    @cached_property
    def content(self) -> Literal["parts", "text"]:
        """How the template takes a message: as a list of parts, images among them, or as a text with the image token in it.

        A language model's own template knows texts only. It is told by what each form becomes, as nothing declares it.
        """
        return "text" if not self._shows("parts") and self._shows("text") else "parts"

    def _shows(self, content: Literal["parts", "text"]) -> bool:
        """Whether a question about an image, given in this form, stands in the prompt with one image token."""
        question = Message("user", _PROBE, 1)
        try:
            prompt = self._rendered([question], content, True)
        except Exception:  # as in `render`
            return False
        words = self._as_text(question) if content == "text" else _PROBE
        return prompt.count(self.tokens.image) == 1 and words in prompt and "{'type'" not in prompt

    def _rendered(
        self, messages: Sequence[Message], content: Literal["parts", "text"], add_generation_prompt: bool
    ) -> str:
        """What the template makes of messages; raises whatever the template does."""
        form = self._as_parts if content == "parts" else self._as_text
        named = {"bos_token": self.tokens.bos or "", "eos_token": self.tokens.eos or ""}
        return self._template.render(
            messages=[{"role": message.role, "content": form(message)} for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **{
                "additional_special_tokens": self.tokens.additional,
                "image_token": self.tokens.image,
                **named,
                **self.tokens.named,
            },
        )

    @staticmethod
    def _as_parts(message: Message) -> list[dict[str, str]]:
        return [{"type": "image"}] * message.images + [{"type": "text", "text": message.text}]

    def _as_text(self, message: Message) -> str:
        return "\n".join([self.tokens.image] * message.images + [message.text])

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
        begins = bool(self.tokens.bos) and text.startswith(str(self.tokens.bos))
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=not begins).ids
        image_id = self.tokens.image_id
        wanted, shown = sum(message.images for message in messages), ids.count(image_id)
        if wanted != shown:
            raise InputError(
                f"the messages have {wanted} pictures, the prompt made of them shows {shown}",
                fix="put the pictures in a turn of the role user; a template may drop those of other roles",
            )
        return [token for id_ in ids for token in [id_] * (tokens_per_image if id_ == image_id else 1)]

    def require_system(self, system: str) -> None:
        """Refuse a system message that the template does not put into the prompt.

        Raises:
            InputError: its text cannot be used, as of `render`.
            ConfigError: the template refuses it, or leaves it out.
        """
        question = Message("user", "?")
        without = self.render([question])
        fix = "leave --system (in Python system=) out, and say it in the first question"
        try:
            shown = self.render([Message("system", system), question])
        except InputError:
            raise
        except ConfigError as error:
            raise ConfigError(f"no system message is possible here: {error.what}", fix=fix) from error
        if shown == without or system.strip() not in shown:
            raise ConfigError("the chat template leaves a system message out of the prompt", fix=fix)

    def text_ids(self, text: str) -> list[int]:
        """A text alone as token ids, without special tokens.

        Raises:
            InputError: it holds the image token, or is not Unicode.
        """
        self._check_text(text)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _check_text(self, text: str) -> None:
        if self.tokens.image in text:
            raise InputError(
                f"the text holds {self.tokens.image!r}, which stands for a picture",
                fix="give pictures by --image (in Python images=), and drop the marker from the text",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text is not Unicode at character {error.start}", fix="give the text as UTF-8"
            ) from error


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
