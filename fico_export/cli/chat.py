"""`fico chat`: a conversation with a bundle, on the terminal or through pipes."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from fico_export.cli.console import complain, say
from fico_export.cli.images import ImageRangeOption, image_range
from fico_export.cli.interrupts import Interrupted, Interrupts
from fico_export.cli.options import (
    BackendOption,
    BundleArgument,
    DebugOption,
    ThreadsOption,
)
from fico_export.cli.sampling import (
    GreedyOption,
    MinPOption,
    NewTokensOption,
    RepetitionPenaltyOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    sampling_of,
)
from fico_export.cli.talk import Asking, Talk
from fico_export.errors import ConfigError

_PROMPT = "> "


def command(
    bundle: BundleArgument,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            "-i",
            metavar="FILE",
            help="Image file of the first question, or a data URL; repeatable.",
            show_default=False,
        ),
    ] = None,
    image_values: ImageRangeOption = None,
    system: Annotated[
        str | None, typer.Option("--system", help="System message before all turns.", show_default=False)
    ] = None,
    backend: BackendOption = "auto",
    max_new_tokens: NewTokensOption = None,
    greedy: GreedyOption = False,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    seed: SeedOption = None,
    stop: StopOption = None,
    threads: ThreadsOption = 0,
    low_memory: Annotated[
        bool,
        typer.Option(
            "--low-memory", help="Load each graph when it is needed, in the place of the one before."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a turn on stdout, errors too; the rest on stderr.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Talk with a bundle: each line is a question, and answers come as they are made.

    On a terminal, /help lists the commands, Ctrl-C stops an answer and Ctrl-D leaves. Lines from a pipe are asked one after
    another, without prompts. An error in a turn is told, and the conversation goes on; at its end the exit code is 0.
    """
    from fico_export.runtime.streaming import StopStrings
    from fico_export.runtime.vlm import Vlm

    stops = stop or []
    StopStrings(stops)  # refused now rather than at every question
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ConfigError(
            f"--max-new-tokens is {max_new_tokens}", fix="give at least 1, such as --max-new-tokens 256"
        )
    sampling = sampling_of(
        greedy=greedy,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    asking = Asking(max_new_tokens, sampling, stops, image_range(image_values))
    with (
        Vlm(bundle, backend=backend, threads=threads, low_memory=low_memory) as vlm,
        vlm.chat(system) as chat,
    ):
        interrupts = Interrupts()
        talk = Talk(vlm, chat, asking, interrupts, system=system, as_json=as_json)
        for name in image or []:
            talk.show(name)
        with interrupts.heeded():
            if sys.stdin.isatty():
                say(f"{vlm.manifest.name} on {vlm.backend}; /help lists the commands, Ctrl-D leaves")
                _every(_typed(), talk)
            else:
                _every(_piped(), talk)


def _every(lines: Iterator[str], talk: Talk) -> None:
    for line in lines:
        if not talk.hear(line):
            return


def _piped() -> Iterator[str]:
    with contextlib.suppress(AttributeError, ValueError):  # not a stream of bytes decoded here
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    for line in sys.stdin:
        yield line.rstrip("\r\n")


def _typed() -> Iterator[str]:
    """Lines of a person, to whom Ctrl-C at the prompt is no way out."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives `input` editing and a history
    while (line := _line()) is not None:
        yield line
    say("")


def _line() -> str | None:
    """A line; none at the end, and an empty one where Ctrl-C took it back."""
    try:
        return _read_line()
    except Interrupted:
        say("\nCtrl-D or /quit leaves")
        return ""
    except EOFError:
        return None


def _read_line() -> str:
    if sys.stdout.isatty():
        return input(_PROMPT)
    complain(_PROMPT, end="")  # stdout is a file or a pipe, and has the answers alone
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")
