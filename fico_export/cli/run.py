"""`fico run`: an image and a question in, an answer out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fico_export.cli.console import print_json, put, say, write
from fico_export.cli.each import run_each
from fico_export.cli.images import (
    ImageRangeOption,
    ImagesOption,
    VideoFpsOption,
    VideosOption,
    image_range,
    opened,
    with_folders_listed,
    without_folders,
)
from fico_export.cli.options import (
    BackendOption,
    BundleArgument,
    DebugOption,
    JsonOption,
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
from fico_export.errors import ConfigError

if TYPE_CHECKING:
    from fico_export.runtime.answer import Answer
    from fico_export.runtime.inputs.images import ImageSource, Video
    from fico_export.runtime.vlm import Vlm


def command(
    bundle: BundleArgument,
    prompt: Annotated[
        list[str],
        typer.Option(
            "--prompt", "-p", help="The question; repeat it for follow-up turns.", show_default=False
        ),
    ],
    image: ImagesOption = None,
    video: VideosOption = None,
    video_fps: VideoFpsOption = None,
    each: Annotated[
        bool,
        typer.Option(
            "--each",
            help="Ask about each image by itself; a line of JSON each, also where one cannot be used.",
        ),
    ] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Search the folders of a folder too, with --each.")
    ] = False,
    image_values: ImageRangeOption = None,
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
            "--low-memory",
            help="Load each graph when it is needed, in the place of the one before; timings hold the loading.",
        ),
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask a bundle about images, or without any.

    How tokens are chosen is what the checkpoint's generation_config.json says; flags win over it.
    """
    from fico_export.runtime.inputs.images import Video
    from fico_export.runtime.inputs.prompt import Message
    from fico_export.runtime.vlm import Vlm

    if video and each:
        raise ConfigError("--video with --each, which asks about images", fix="drop --each")
    if video_fps is not None and not video:
        raise ConfigError("--video-fps is of --video", fix="add --video, or drop --video-fps")
    if recursive and not each:
        raise ConfigError("--recursive is of --each", fix="add --each, or drop --recursive")
    values, pictures = image_range(image_values), opened(image)
    pictures = with_folders_listed(pictures, recursive=recursive) if each else without_folders(pictures)
    sampling = sampling_of(
        greedy=greedy,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    vlm = Vlm(bundle, backend=backend, threads=threads, low_memory=low_memory)

    def ask(shown: list[ImageSource | Video], *, silent: bool) -> list[Answer]:
        chat = vlm.chat()
        answers: list[Answer] = []
        for turn, question in enumerate(prompt):
            stream = chat.stream(
                question,
                shown if turn == 0 else (),
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                stop=stop or [],
                image_range=values if turn == 0 else None,
            )
            for piece in stream:
                if not silent:
                    write(piece)
            answers.append(stream.answer)
            if not silent:
                if stream.answer.text:
                    put()
                if note := _note(stream.answer):
                    say(note)
                say(_timings(stream.answer))
        return answers

    if each:
        vlm.formatter.encode([Message("user", prompt[0], 1)])  # a prompt that cannot be used, once
        run_each(pictures, lambda picture: _turns(ask([picture], silent=True), vlm))
        return
    videos = [Video(source, video_fps) for source in video or ()]
    answers = ask([*pictures, *videos], silent=as_json)
    if as_json:
        print_json(_turns(answers, vlm))


def _turns(answers: list[Answer], vlm: Vlm) -> dict[str, Any]:
    turns = [_describe(answer) for answer in answers]
    return {**turns[-1], "backend": vlm.backend, "turns": turns}


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
