"""Messages to token ids.

Ids equal those of transformers' ``AutoProcessor.apply_chat_template(..., tokenize=True)``; neither torch nor
transformers is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tokenizers import Tokenizer

from fico_export import tokenizer
from fico_export.bundle.manifest import Tokens
from fico_export.errors import ConfigError, FicoError, InputError
from fico_export.runtime.inputs.template import ChatTemplate

MAX_TEXT = 2**20
"""Characters of the longest message: some 250,000 tokens."""

IMAGE = "<image>"
"""Where an image stands in the text of a turn, whatever the model calls its image token."""

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
    """One turn: its images come before its text, or stand where the text has `IMAGE` for each of them.

    Args:
        role: ``system``, ``user`` or ``assistant``.
        text: what was said.
        images: how many images the turn shows.
        videos: how many videos, after the images.
    """

    role: str
    text: str
    images: int = 0
    videos: int = 0

    @property
    def pieces(self) -> list[str]:
        """The text before, between and after its images; one piece where they come before it."""
        return self.text.split(IMAGE) if self.images else [self.text]

    def require_places(self) -> None:
        """Refuse a text with places for more or fewer images than there are.

        Raises:
            InputError: it has.
        """
        if len(self.pieces) not in (1, self.images + 1):
            raise InputError(
                f"the text has {len(self.pieces) - 1} places for images ({IMAGE}), and {self.images} were given",
                fix=f"write {IMAGE} once for each image, or not at all: then images come before the text",
            )


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
        self._bounded = tokenizer.read(
            tokenizer_json, "tokenizer.json", fix="export the checkpoint again with its own tokenizer.json"
        )
        self.tokenizer: Tokenizer = self._bounded.tokenizer
        found = self.tokenizer.token_to_id(tokens.image)
        if found != tokens.image_id:
            raise ConfigError(
                f"the tokenizer's id of {tokens.image!r} is {found}, the model's is {tokens.image_id}",
                fix="use tokenizer.json and config.json of one checkpoint",
            )
        self._template = ChatTemplate(LLAVA_TEMPLATE if chat_template is None else chat_template)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt as text, with one image token for each image.

        Args:
            messages: the turns so far.
            add_generation_prompt: end with the words that begin the model's answer.

        Raises:
            InputError: a text holds the image token, is not Unicode, or has places for another number of images; or the template
                shows images elsewhere.
            ConfigError: the template refuses these messages.
        """
        for message in messages:
            message.require_places()
            for piece in message.pieces:
                self._check_text(piece)
        try:
            text = self._rendered(messages, self.content, add_generation_prompt)
        except FicoError:
            raise
        except Exception as error:  # a template is a program: it fails in any way that Python does
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(
                f"the chat template refuses messages of roles [{roles}]: {error}",
                fix="give turns that it takes (most: user and assistant in turn), or correct the checkpoint's template: "
                "write one that is right to its chat_template.jinja and export again",
            ) from error
        self._require_order(text, messages)
        return text

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

    def _require_order(self, text: str, messages: Sequence[Message]) -> None:
        """Refuse a template that gathers images at the front of a text with places for them."""
        at = 0
        for message in messages:
            if len(message.pieces) == 1:
                continue
            for piece in [part for words in message.pieces for part in (words.strip(), self.tokens.image)][
                :-1
            ]:
                at = text.find(piece, at)
                if at < 0:
                    raise InputError(
                        f"this model's chat template shows images before the text, and the text has places for them ({IMAGE})",
                        fix=f"drop {IMAGE} from the text",
                    )
                at += len(piece)

    @staticmethod
    def _as_parts(message: Message) -> list[dict[str, str]]:
        image, videos = {"type": "image"}, [{"type": "video"}] * message.videos
        first, *others = message.pieces
        if not others:
            return [*[image] * message.images, *videos, {"type": "text", "text": first}]
        parts = [*videos, {"type": "text", "text": first}]
        for piece in others:
            parts += [image, {"type": "text", "text": piece}]
        return [part for part in parts if part.get("text") != ""]

    def _as_text(self, message: Message) -> str:
        if len(message.pieces) > 1:
            return self.tokens.image.join(message.pieces)
        return "\n".join([self.tokens.image] * message.images + [message.text])

    def encode(self, messages: Sequence[Message], tokens_per_image: int = 1) -> list[int]:
        """The prompt as token ids, with one image token for each image; a `Layout` says what stands there instead.

        Args:
            messages: the turns so far, the last one asking.
            tokens_per_image: how often each image token is to stand there, for those who need no layout.

        Raises:
            InputError: as `render`, or the template shows more or fewer images than the messages have.
            ConfigError: as `render`.
        """
        text = self.render(messages)
        begins = bool(self.tokens.bos) and text.startswith(str(self.tokens.bos))
        ids = self._bounded.encode(text, add_special_tokens=not begins)
        image_id = self.tokens.image_id
        videos = ids.count(self.tokens.video_id) if self.tokens.video_id is not None else 0
        for what, wanted, shown in (
            ("images", sum(message.images for message in messages), ids.count(image_id)),
            ("videos", sum(message.videos for message in messages), videos),
        ):
            if wanted != shown:
                raise InputError(
                    f"the messages have {wanted} {what}, the prompt made of them shows {shown}",
                    fix=f"put the {what} in a turn of the role user; a template may drop those of other roles",
                )
        return [token for token in ids for _ in range(tokens_per_image if token == image_id else 1)]

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
        return self._bounded.encode(text, add_special_tokens=False)

    def _check_text(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise InputError(
                f"the text has {len(text):,} characters, more than {MAX_TEXT:,}", fix="shorten the prompt"
            )
        for marker, what in ((self.tokens.image, "image"), (self.tokens.video, "video")):
            if marker and marker in text:
                raise InputError(
                    f"the text holds {marker!r}, which stands for {'an' if what == 'image' else 'a'} {what}",
                    fix=f"give {what}s by --{what} (in Python images=), and drop the marker from the text",
                )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text is not Unicode at character {error.start}", fix="give the text as UTF-8"
            ) from error
