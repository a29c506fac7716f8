"""`fico run`: a picture and a question in, an answer out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fico_export.cli.console import print_json, put, say, write
from fico_export.cli.options import (
    BackendOption,
    BundleArgument,
    DebugOption,
    JsonOption,
    ThreadsOption,
)
from fico_export.errors import ConfigError

if TYPE_CHECKING:
    from fico_export.runtime.generation import Answer


def command(
    bundle: BundleArgument,
    prompt: Annotated[
        list[str],
        typer.Option(
            "--prompt", "-p", help="The question; repeat it for follow-up turns.", show_default=False
        ),
    ],
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="A picture; repeatable.")] = None,
    backend: BackendOption = "auto",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            help="Longest answer in tokens; by default what generation_config.json says, or 256.",
            show_default=False,
        ),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take the likeliest token even where the model's authors sample.")
    ] = False,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="Sample at this temperature; 0 is --greedy.", show_default=False),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Sample among tokens of this total probability.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", help="Sample among so many tokens; 0 for all.", show_default=False),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p",
            help="Sample among tokens at least this share as likely as the likeliest.",
            show_default=False,
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            "--repetition-penalty",
            help="Make tokens that were there less likely; 1 for no penalty.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="Random seed for sampling: the same seed, the same answer.", show_default=False
        ),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="A string that ends an answer; repeatable.")
    ] = None,
    threads: ThreadsOption = 0,
    low_memory: Annotated[
        bool,
        typer.Option(
            "--low-memory",
            help="Load each graph when it is needed, in the place of the one before; timings hold the loading.",
        ),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask a bundle about pictures, or without any.

    How tokens are chosen is what the checkpoint's generation_config.json says; flags win over it.
    """
    from fico_export.runtime.sampling import Sampling
    from fico_export.runtime.vlm import Vlm

    if greedy and temperature:
        raise ConfigError(f"--greedy with --temperature {temperature:g}", fix="drop one of them")
    sampling = Sampling(
        temperature=0 if greedy else temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    vlm = Vlm(bundle, backend=backend, threads=threads, low_memory=low_memory)
    chat = vlm.chat()
    answers: list[Answer] = []
    for turn, question in enumerate(prompt):
        pictures = list(image or []) if turn == 0 else []
        stream = chat.stream(
            question, pictures, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop or []
        )
        for piece in stream:
            if not as_json:
                write(piece)
        answers.append(stream.answer)
        if not as_json:
            if stream.answer.text:
                put()
            if note := _note(stream.answer):
                say(note)
            say(_timings(stream.answer))
    if as_json:
        turns = [_describe(a) for a in answers]
        print_json({**turns[-1], "backend": vlm.backend, "turns": turns})


def _note(answer: Answer) -> str:
    """What should be said of how an answer ended; nothing where the model ended it."""
    count = f"{len(answer.token_ids)} tokens" if len(answer.token_ids) > 1 else "1 token"
    parts = []
    if not answer.text.strip():
        parts.append(f"the answer is empty: {count}, finish reason {answer.finish_reason}")
    if answer.finish_reason == "length":
        parts.append(f"the answer was cut (length): {count}; --max-new-tokens N gives it more")
    if answer.finish_reason == "context":
        parts.append(f"the answer was cut (context): after {count} the model's context is full")
    return f"[{'; '.join(parts)}]" if parts else ""


def _describe(answer: Answer) -> dict[str, Any]:
    return {k: _rounded(v) for k, v in asdict(answer).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def _timings(answer: Answer) -> str:
    stages = " · ".join(f"{name} {ms:.0f}" for name, ms in answer.stages_ms.items())
    tpot = "–" if answer.tpot_ms is None else f"{answer.tpot_ms:.1f} ms/token"
    tokens = (
        f"{answer.prompt_tokens} prompt tokens ({answer.visual_tokens} visual, {answer.cached_tokens} cached)"
    )
    return f"[{stages} ms · first token {answer.ttft_ms:.0f} ms · {tpot} · {tokens}]"
