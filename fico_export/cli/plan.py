"""`fico plan`: will it fit, and how fast at best, from config.json alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fico_export.cli.console import human_bytes, print_json, put, say
from fico_export.cli.flags import export_flags
from fico_export.cli.options import DebugOption, JsonOption
from fico_export.options import ExportOptions

if TYPE_CHECKING:
    from fico_export.plan.planner import Estimate
    from fico_export.plan.roofline import Range

_MOST_TOKENS = 2**24  # more than any model's context
_NOTE = "estimates: likely (range); without the host's part, which prepares the image and the prompt"


@export_flags(
    planned=True, device="Device to plan for; `fico list devices`. Default: all of them, a line each."
)
def command(
    given: dict[str, Any],
    text_tokens: Annotated[
        int,
        typer.Option("--text-tokens", min=1, max=_MOST_TOKENS, help="Number of text tokens in the prompt."),
    ] = 40,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", min=1, max=_MOST_TOKENS, help="Number of tokens in the answer.")
    ] = 128,
    sweep: Annotated[bool, typer.Option("--sweep", help="Print a table over K and precision.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="PLOT.png", help="Draw the sweep; needs --device and matplotlib."
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Estimate memory and speed of an export on a device before making it; reads config.json, no weights."""
    from fico_export.bundle.output import require_matplotlib, require_writable
    from fico_export.devices import catalog
    from fico_export.errors import ConfigError
    from fico_export.plan import plot

    options = ExportOptions.of(given)
    chosen = catalog.get(options.device, options.devices) if options.device is not None else None
    if out is not None and chosen is None:
        raise ConfigError(
            "--out draws times, and no device was named", fix="add --device NAME, or drop --out"
        )
    if out is not None:
        require_writable(out, plot.SUFFIXES)
        require_matplotlib("plots")

    # These take torch: what is wrong with the request has been said before.
    from fico_export.api import open_architecture
    from fico_export.plan import advice
    from fico_export.plan.planner import PlanRequest
    from fico_export.reducers import with_method

    described = open_architecture(str(options.model), options.revision)
    request = PlanRequest(**vars(with_method(options)), text_tokens=text_tokens, new_tokens=new_tokens)
    found = advice.plan(described, request, chosen)
    swept = advice.sweep(described, request, chosen) if sweep or out else []
    everywhere = advice.everywhere(described, request) if chosen is None else []
    if out is not None:
        plot.draw(swept, out)
    if as_json:
        lists = {"sweep": swept, "devices": everywhere}
        print_json(
            {"estimate": asdict(found)} | {name: [asdict(e) for e in es] for name, es in lists.items() if es}
        )
    else:
        for line in (*_described(found), *_table("sweep", swept), *_table("devices", everywhere)):
            put(line)
    if out is not None:
        say(f"{out}: written")


def _described(found: Estimate) -> Iterator[str]:
    where = f" on {found.device}" if found.device else ""
    yield (
        f"{found.method}: {found.visual_tokens} → {found.keep} visual tokens, {found.precision}, "
        f"target {found.target}{where}"
    )
    if found.note:
        yield f"note: {found.note}"
    yield f"{'stage':<10}{'GFLOP':>10}{'weights':>11}{'moved':>11}   of the FLOPs"
    for stage in found.stages:
        parts = ", ".join(f"{name} {n / 1e9:.4g}" for name, n in stage.flops.items() if n)
        yield (
            f"{stage.name:<10}{stage.total_flops / 1e9:>10.4g}{human_bytes(stage.weight_bytes):>11}"
            f"{human_bytes(stage.moved_bytes):>11}   {parts}"
        )
    yield f"memory, a prompt of {found.prompt_tokens} tokens, {found.rows} rows of cache:"
    for part in found.memory:
        yield f"  {part.name:<20}{_bytes(part.bytes)}"
    yield f"  {'needed, estimate':<20}{_bytes(found.needed)}"
    if found.room:
        yield f"  {'there is':<20}{_bytes(found.room)}"
        yield f"verdict: {found.verdict}"
    for option in found.options:
        yield f"  {option.verdict} with {option.flags}"
    if found.speeds:
        yield f"speed, {_NOTE}:"
        yield f"  {'mode':<12} {'vision ms':>22} {'prefill ms':>22} {'first token ms':>24} {'tokens/s':>22}"
        for speed in found.speeds:
            cells = (speed.vision_ms, speed.prefill_ms, speed.first_token_ms, speed.tokens_per_second)
            widths = (22, 22, 24, 22)
            yield f"  {speed.mode or '–':<12}" + "".join(
                f" {_number(c):>{w}}" for c, w in zip(cells, widths, strict=True)
            )
    elif found.device:
        yield "speed: not known; the device's peak or bandwidth is not in the catalogue, or its target is a CPU's"


def _table(title: str, rows: list[Estimate]) -> Iterator[str]:
    if not rows:
        return
    yield f"{title}, {_NOTE}:"
    yield f"  {'device':<20}{'K':>5} {'precision':<10} {'needed GB':>20} {'first token ms':>24} {'tokens/s':>20}  verdict"
    for row in rows:
        speed = row.fastest
        first = _number(speed.first_token_ms) if speed else "–"
        rate = _number(speed.tokens_per_second) if speed else "–"
        needed = _number(row.needed.map(lambda n: n / 1e9))
        yield (
            f"  {row.device or '–':<20}{row.keep:>5} {row.precision:<10} {needed:>20} {first:>24} {rate:>20}"
            f"  {row.verdict or '–'}"
        )


def _number(value: Range) -> str:
    least, likely, most = (
        f"{n:.0f}" if n >= 100 else f"{n:.3g}" for n in (value.least, value.likely, value.most)
    )
    return f"{likely} ({least}–{most})"


def _bytes(value: Range) -> str:
    if value.least == value.most:
        return human_bytes(int(value.likely))
    least, likely, most = (human_bytes(int(n)) for n in (value.least, value.likely, value.most))
    return f"{likely} ({least} – {most})"
