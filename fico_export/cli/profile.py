"""`fico profile`: where a bundle's time and memory go, and those of several against each other."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fico_export.cli.console import StageProgress, console, human_bytes, print_json, say, visible
from fico_export.cli.images import opened, paths_of
from fico_export.cli.options import (
    BackendOption,
    DebugOption,
    JsonOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from rich.table import Table

    from fico_export.profile.record import Measured, Run, Spread
    from fico_export.progress import Progress

_BAR = 60  # columns of the longest answer


def command(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BUNDLE...",
            help="Folders of bundles; ratios are to the first. The same one twice is a control.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            "-i",
            metavar="FILE|-",
            help="Image file or `-` for standard input; one is drawn by default.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Question to ask.", show_default=False)
    ] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = 0,
    iterations: Annotated[
        int, typer.Option("--iterations", help="Number of answers measured, of each bundle.")
    ] = 20,
    warm_up: Annotated[
        int,
        typer.Option("--warm-up", help="Number of answers before them that do not count, of each bundle."),
    ] = 3,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", help="Number of tokens in every answer, whatever the model says.")
    ] = 16,
    in_turn: Annotated[
        bool,
        typer.Option(
            "--in-turn",
            help="Load one bundle at a time, where memory does not hold all; ratios then hold the machine's drift.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File for the whole measurement as JSON. Default: profile.json in every bundle.",
            show_default=False,
        ),
    ] = None,
    logs: Annotated[
        list[Path] | None,
        typer.Option(
            "--logs",
            metavar="FILE",
            help="Log of trtexec or ONNX Runtime's profiler to read instead of measuring; repeatable. BUNDLE is then the one it is of.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the stages of answering, first token, time per token and memory; several bundles in alternation."""
    if logs:
        from fico_export.cli import profile_logs
        from fico_export.errors import ConfigError

        if out is not None:
            raise ConfigError(
                "--out with --logs, which measures nothing",
                fix="drop --out; --json prints all that was read",
            )
        profile_logs.show(logs, bundles or [], as_json=as_json)
        return
    from fico_export.bundle import manifest
    from fico_export.bundle.output import require_writable
    from fico_export.errors import ConfigError
    from fico_export.profile.measure import ProfileRequest, profile
    from fico_export.profile.picture import PROMPT
    from fico_export.profile.record import FILE_NAME, is_profile

    if not bundles:
        raise ConfigError("no BUNDLE to profile", fix="give the folder of at least one, or --logs FILE")
    picture = opened([image])[0] if image is not None else None
    request = ProfileRequest(
        picture, PROMPT if prompt is None else prompt, backend, threads, iterations, warm_up, new_tokens, in_turn
    )  # fmt: skip
    if out is not None:
        own = (
            bundle / name
            for bundle in bundles
            for name in (manifest.FILE_NAME, *manifest.Manifest.load(bundle).files)
        )
        require_writable(out, ".json", [*own, *paths_of([picture])], ours=is_profile)
    with StageProgress() as progress:
        run = profile(bundles, request, progress)
        if out is not None:
            run.save(out)
            kept = [out]
        else:
            kept = _kept((bundle / FILE_NAME for bundle in dict.fromkeys(bundles)), run, progress)
    if as_json:
        print_json(run.model_dump(mode="json"))
        return
    _show(run)
    if kept:
        say(f"kept in {', '.join(map(str, kept))}")


def _kept(files: Iterable[Path], run: Run, progress: Progress) -> list[Path]:
    """Write the run beside what it measured; a bundle that may only be read is no reason to lose the measurement."""
    from fico_export.errors import ConfigError

    written = []
    for file in files:
        try:
            run.save(file)
            written.append(file)
        except ConfigError as error:  # noqa: PERF203  # a bundle or two
            progress.warn(f"not kept: {error.what}")
    return written


def _show(run: Run) -> None:
    page = console(width=None if sys.stdout.isatty() else 140)
    page.print(_table(run))
    page.print(_waterfall(run))
    machine = run.machine
    facts = [machine.name, f"{machine.cores} threads", machine.power_mode or "power mode unknown"]
    facts += [f"{name} {first:.0f}→{last:.0f} MHz" for name, (first, last) in machine.clocks_mhz.items()]
    facts += [f"{run.iterations} iterations after {run.warm_up}", "in turn" if run.in_turn else ""]
    page.print(visible(" · ".join(filter(None, facts))), style="dim")


def _table(run: Run) -> Table:
    """A line a measure, a column a bundle: median, 10th to 90th percentile, ratio to the first."""
    from rich.table import Table
    from rich.text import Text

    table = Table("ms: median (p10–p90)")
    for number, bundle in enumerate(run.bundles, 1):
        table.add_column(Text(f"{number}: {visible(_title(bundle))}"), justify="right")
    for name, cells in _rows(run):
        table.add_row(Text(visible(name)), *cells)
    return table


def _rows(run: Run) -> Iterator[tuple[str, list[str]]]:
    for stage in run.bundles[0].stages:
        yield stage, [_cell(run, i, b.stages[stage], stage) for i, b in enumerate(run.bundles)]
        if stage == "vision":
            yield from _vision_rows(run)
    yield "first token (TTFT)", [_cell(run, i, b.ttft, "ttft") for i, b in enumerate(run.bundles)]
    if all(b.tpot for b in run.bundles):
        yield (
            "per token (TPOT)",
            [_cell(run, i, b.tpot, "tpot") for i, b in enumerate(run.bundles) if b.tpot],
        )
        yield "tokens per second", [f"{b.tokens_per_second:.1f}" for b in run.bundles]
    yield "end to end", [_cell(run, i, b.end_to_end, "end_to_end") for i, b in enumerate(run.bundles)]
    yield "stages over end to end", [f"{b.coverage:.1%}" for b in run.bundles]
    yield "prompt + new tokens", [f"{b.prompt_tokens} + {b.new_tokens}" for b in run.bundles]
    yield "peak memory", [_bytes(b.host_peak_bytes) for b in run.bundles]
    yield "  after loading", [_bytes(b.host_answering_bytes) for b in run.bundles]
    if any(b.device_peak_bytes is not None for b in run.bundles):
        yield "peak GPU memory", [_bytes(b.device_peak_bytes) for b in run.bundles]


def _vision_rows(run: Run) -> Iterator[tuple[str, list[str]]]:
    for part in dict.fromkeys(part for b in run.bundles for part in b.vision_parts):
        yield (
            f"  {part}",
            [f"{b.vision_parts[part]:.1%} of it" if part in b.vision_parts else "–" for b in run.bundles],
        )
    if any(b.reducer_ms is not None for b in run.bundles):
        cells = ["–" if b.reducer_ms is None else f"{b.reducer_ms:+.2f}" for b in run.bundles]
        yield "  less that of none", cells


def _waterfall(run: Run) -> Table:
    """Each bundle's stages one after another, on one scale."""
    from rich.bar import Bar
    from rich.table import Table

    total = max(sum(s.median for s in b.stages.values()) for b in run.bundles)
    table = Table.grid(padding=(0, 1))
    for number, bundle in enumerate(run.bundles, 1):
        begin = 0.0
        for stage, taken in bundle.stages.items():
            end = begin + taken.median
            table.add_row(
                f"{number}", visible(stage), Bar(total, begin, end, width=_BAR), f"{begin:.1f} → {end:.1f} ms"
            )
            begin = end
    return table


def _title(bundle: Measured) -> str:
    kept = f"{bundle.keep} of {bundle.visual_tokens}"
    return f"{bundle.name}\n{bundle.method} {kept}, {bundle.precision}, {bundle.backend}"


def _cell(run: Run, place: int, spread: Spread, measure: str) -> str:
    ratio = f" ×{run.ratios[measure][place]:.3f}" if place and measure in run.ratios else ""
    return f"{spread.median:.2f} ({spread.p10:.2f}–{spread.p90:.2f}){ratio}"


def _bytes(count: int | None) -> str:
    return "–" if count is None else human_bytes(count)
