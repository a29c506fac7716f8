"""`fico verify`: does a bundle compute what its checkpoint computes? Fails closed."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from fico_export.cli.console import StageProgress, print_json, put
from fico_export.cli.options import (
    BundleArgument,
    CheckpointNowOption,
    ClipNowOption,
    DebugOption,
    JsonOption,
)

if TYPE_CHECKING:
    from fico_export.parity.report import Check


def command(
    bundle: BundleArgument,
    model: CheckpointNowOption = None,
    clip_text: ClipNowOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare a bundle with its checkpoint; exit 1 when a threshold is missed or a check could not run."""
    from fico_export.api import verify

    with StageProgress() as progress:
        report = verify(bundle, model=model, clip_text=clip_text, progress=progress)
    good = not report.failed and not report.skipped
    if as_json:
        checks = [_describe(check) for check in report.checks]
        print_json({"bundle": report.bundle, "precision": report.precision, "passed": good, "checks": checks})
    else:
        for check in report.checks:
            put(_line(check))
        put("passed" if good else f"not passed: {len(report.failed)} failed, {len(report.skipped)} skipped")
    if not good:
        raise typer.Exit(1)


def _describe(check: Check) -> dict[str, Any]:
    finite = check.value is not None and math.isfinite(check.value)  # JSON has no NaN
    return {**asdict(check), "value": check.value if finite else None, "status": check.status}


def _line(check: Check) -> str:
    value = "–" if check.value is None else f"{check.value:.7g}"
    held = "reported" if check.threshold is None else f"{'≥' if check.at_least else '≤'} {check.threshold:g}"
    note = f"  {check.note}" if check.note else ""
    return f"{check.status:<9} {check.graph:<22} {check.metric:<32} {value:<14} {held}{note}"
