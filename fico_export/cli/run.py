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
        int, typer.Option("--max-new-tokens", help="Tokens of an answer at most.")
    ] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Sample among tokens of this total probability.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Sample among so many tokens; 0 for all.")] = 0,
    seed: Annotated[int | None, typer.Option("--seed", help="Random seed for sampling.")] = None,
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
    """Ask a bundle about pictures, or without any."""
    from fico_export.runtime.sampling import Sampling
    from fico_export.runtime.vlm import Vlm

    sampling = Sampling(temperature, top_p, top_k, seed)
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
            put()
            say(_timings(stream.answer))
    if as_json:
        turns = [_describe(a) for a in answers]
        print_json({**turns[-1], "backend": vlm.backend, "turns": turns})


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
