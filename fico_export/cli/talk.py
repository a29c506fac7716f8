"""What a line of `fico chat` does: ask a question, or one of the commands that begin with a slash."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fico_export.cli.console import complain, print_json, say, write
from fico_export.cli.interrupts import Interrupted, Interrupts
from fico_export.cli.transcript import Said, save
from fico_export.errors import FicoError, InputError, unknown_name

if TYPE_CHECKING:
    from PIL import Image

    from fico_export.runtime.answer import Answer
    from fico_export.runtime.conversation import Conversation
    from fico_export.runtime.inputs.deep_images import Range
    from fico_export.runtime.sampling import Sampling
    from fico_export.runtime.vlm import Vlm

_HELP = """\
/image FILE…   Show images with the next question; alone, list those that wait.
/reset         Forget the conversation and the images that wait.
/save FILE     Write the conversation to a new .jsonl or .md file.
/help          List the commands.
/quit          Leave, as Ctrl-D does.
//…            Ask a question that begins with a slash.
Ctrl-C         Stop the answer; what was said stays in the conversation. A second one drops the turn."""


@dataclass(frozen=True)
class Asking:
    """How every question is asked; as for `Vlm.stream`."""

    max_new_tokens: int | None
    sampling: Sampling
    stop: Sequence[str]
    image_range: Range | None


class Talk:
    """A conversation line by line.

    Args:
        vlm: the bundle.
        chat: its conversation.
        asking: how every question is asked.
        interrupts: told of the answer that Ctrl-C stops.
        system: the conversation's system message, for its transcript.
        as_json: give each turn and each error as a line of JSON.
    """

    def __init__(
        self,
        vlm: Vlm,
        chat: Conversation,
        asking: Asking,
        interrupts: Interrupts,
        *,
        system: str | None = None,
        as_json: bool = False,
    ) -> None:
        self._vlm, self._chat, self._asking, self._interrupts = vlm, chat, asking, interrupts
        self._system, self._as_json = system, as_json
        self._waiting: list[tuple[str, Image.Image]] = []
        self._turns: list[Said] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/reset": self._reset,
            "/save": self._save,
            "/help": lambda _: say(_HELP),
        }

    def show(self, name: str) -> None:
        """Show an image with the next question.

        Raises:
            InputError: it cannot be used.
        """
        from fico_export.runtime.inputs.image_sources import label_of
        from fico_export.runtime.inputs.images import load_image

        if name == "-":
            raise InputError(
                "standard input is the conversation, and no image", fix="give the image as a file"
            )
        source = _at_home(name)
        picture = load_image(source, image_range=self._asking.image_range)
        self._waiting.append((label_of(source), picture))

    def hear(self, line: str) -> bool:
        """Do what a line says; what goes wrong is told, and the conversation is as it was.

        Returns:
            Whether the conversation goes on.
        """
        line = line.strip()
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return False
            if line.startswith("/") and not line.startswith("//"):
                self._command(word)(rest.strip())
            elif line:
                self._ask(line.removeprefix("/"))
        except FicoError as error:
            self._tell(error)
        except Interrupted:
            say("\n[interrupted: the conversation is as it was before]")
        return True

    def _command(self, word: str) -> Callable[[str], None]:
        if word not in self._commands:
            raise unknown_name("command", word, [*self._commands, "/quit"])
        return self._commands[word]

    def _ask(self, question: str) -> None:
        asking, images = self._asking, [picture for _, picture in self._waiting]
        stream = self._chat.stream(
            question, images, max_new_tokens=asking.max_new_tokens, sampling=asking.sampling, stop=asking.stop
        )
        with stream, self._interrupts.stopping(stream):
            for piece in stream:
                if not self._as_json:
                    write(piece)
        answer, names = stream.answer, [name for name, _ in self._waiting]
        if whole := bool(answer.text) or answer.finish_reason != "stopped":
            self._turns.append(Said(question, names, answer.text))
            self._waiting.clear()
        if self._as_json:
            print_json({"question": question, "images": names, **_described(answer)})
        elif answer.text:
            write("\n")
        if note := _note(answer, whole=whole):
            say(f"[{note}]")

    def _image(self, names: str) -> None:
        for name in _files(names):
            self.show(name)
        say("waiting for the next question: " + (", ".join(name for name, _ in self._waiting) or "no image"))

    def _reset(self, _: str) -> None:
        self._chat.restart()
        self._turns.clear()
        self._waiting.clear()
        say("a new conversation")

    def _save(self, name: str) -> None:
        path = Path(_at_home("".join(_files(name)[:1])))
        save(path, self._vlm.manifest.name, self._system, self._turns)
        say(f"{len(self._turns)} turns written to {path}")

    def _tell(self, error: FicoError) -> None:
        if self._as_json:
            print_json({"error": error.what, "hint": error.fix, "exit": error.exit_code})
        complain(f"error: {error.what}\nhint:  {error.fix}")


def _files(text: str) -> list[str]:
    """Names as a shell would read them; a file whose name has spaces may be given bare."""
    try:
        return [text] if Path(_at_home(text)).is_file() else shlex.split(text)
    except (OSError, ValueError):  # too long a name, a quote that does not end
        return [text]


def _at_home(name: str) -> str:
    """A name with its ~ as a shell reads it; all others as they are, for a path would lose a slash of an address."""
    try:
        return str(Path(name).expanduser()) if name.startswith("~") else name
    except RuntimeError:  # there is no such user
        return name


def _note(answer: Answer, *, whole: bool) -> str:
    """What a person should know of how an answer ended; nothing where the model ended it."""
    if not whole:
        return "stopped before a word was said: the question is not part of the conversation"
    if answer.finish_reason == "stopped":
        return "stopped; what was said stays in the conversation"
    if answer.finish_reason == "length":
        return f"cut after {len(answer.token_ids)} tokens; --max-new-tokens gives more"
    if answer.finish_reason == "context":
        return "cut: the model's context is full; /reset begins anew"
    return "" if answer.text.strip() else "the answer is empty"


def _described(answer: Answer) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in asdict(answer).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value
