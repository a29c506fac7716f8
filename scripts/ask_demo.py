#!/usr/bin/env python3
"""Show what token reduction does: a held-out scene, a question of each kind, all visual tokens against the kept ones.

    fico-export --model demo --keep 64 --method dpp
    fico-export --model demo --method none
    python scripts/ask_demo.py engines/demo-none-k576-fp32 engines/demo-dpp-k64-fp32

Prints the answers beside what the scene shows, and the time of each stage. Writes the scene beside the same scene with the
dropped tokens darkened.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

import fico_export
from fico_export.demo import scenes
from fico_export.demo.questions import one_of_each
from fico_export.runtime.answer import STAGES, Answer


def main(
    full: Annotated[Path, typer.Argument(help="Bundle with all visual tokens.")],
    reduced: Annotated[Path, typer.Argument(help="Bundle with the kept ones.")],
    scene: Annotated[int, typer.Option(help="Index of the held-out scene.")] = 10,
    out: Annotated[Path, typer.Option(help="Where the image goes.")] = Path("engines/demo.png"),
    repeats: Annotated[int, typer.Option(help="Runs that the times are medians of.")] = 5,
) -> None:
    """Ask both bundles in alternation."""
    shown = scenes.scene(scene, "held-out")
    picture = scenes.render(shown)
    asked = one_of_each(shown)
    vlms = [fico_export.load(bundle) for bundle in (full, reduced)]
    columns = [f"{vlm.manifest.reduction.keep} tokens" for vlm in vlms]
    runs: list[list[list[Answer]]] = [  # run, question, bundle
        [[vlm.generate(q.text, [picture], max_new_tokens=8) for vlm in vlms] for q in asked]
        for _ in range(repeats + 1)
    ]

    console = Console()
    kept = vlms[1].encode_image(picture, asked[0].text).keep_index
    grid = vlms[1].manifest.profile.token_grid
    console.print(_map(picture, kept, grid))
    answers = Table("question", *columns, "the scene shows")
    right = [0, 0]
    for question, said in zip(asked, runs[0], strict=True):
        marks = [answer.text == question.answer for answer in said]
        right = [count + mark for count, mark in zip(right, marks, strict=True)]
        cells = [f"{a.text}  {'right' if m else 'wrong'}" for a, m in zip(said, marks, strict=True)]
        answers.add_row(question.text, *cells, question.answer)
    console.print(answers)
    times = Table(f"ms, median of {repeats * len(asked)}", *columns, "ratio")
    timed = [answer for run in runs[1:] for answer in run]  # the first run warms up
    for stage in (*STAGES, "first token"):
        medians = [
            statistics.median(
                pair[i].ttft_ms if stage == "first token" else pair[i].stages_ms[stage] for pair in timed
            )
            for i in range(2)
        ]
        times.add_row(stage, *(f"{m:.1f}" for m in medians), f"{medians[1] / max(medians[0], 1e-9):.2f}")
    console.print(times)
    out.parent.mkdir(parents=True, exist_ok=True)
    _beside(picture, kept, grid).save(out)
    method = vlms[1].manifest.reduction.method
    console.print(
        f"{columns[0]}: {right[0]} of {len(asked)} right; {columns[1]} by {method}: {right[1]} of {len(asked)} right"
    )
    console.print(f"the scene, and the tokens that {reduced.name} keeps: {out}", soft_wrap=True)


def _map(picture: Image.Image, kept: np.ndarray, grid: tuple[int, int]) -> Text:
    """The grid of visual tokens in the image's colours, ■ for a kept one."""
    rows, columns = grid
    colours = np.asarray(picture.resize((columns, rows), Image.Resampling.BOX)).reshape(-1, 3)
    text, lit = Text(), set(kept.tolist())
    for i, (red, green, blue) in enumerate(colours):
        text.append("■ " if i in lit else "· ", style=f"rgb({red},{green},{blue})")
        if (i + 1) % columns == 0:
            text.append("\n")
    return text


def _beside(picture: Image.Image, kept: np.ndarray, grid: tuple[int, int]) -> Image.Image:
    """The image, and the image with every dropped token's patch darkened, three times as large."""
    light = np.full(grid[0] * grid[1], 50, np.uint8)
    light[kept] = 255
    size = (3 * picture.width, 3 * picture.height)
    mask = Image.fromarray(light.reshape(grid)).resize(size, Image.Resampling.NEAREST)
    large = picture.resize(size, Image.Resampling.NEAREST)
    both = Image.new("RGB", (2 * size[0] + 12, size[1]), "white")
    both.paste(large, (0, 0))
    both.paste(Image.composite(large, Image.new("RGB", size), mask), (size[0] + 12, 0))
    return both


if __name__ == "__main__":
    typer.run(main)
