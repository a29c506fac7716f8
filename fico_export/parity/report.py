"""The outcome of a comparison: every number with the threshold it is held to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fico_export.errors import ParityError

PROCESSED = "logits processed as by generate"
"""A metric: whether generation_config.json does to logits here what it does in transformers."""


@dataclass(frozen=True)
class Check:
    """One number.

    Attributes:
        graph: what was compared.
        metric: name of the number.
        value: the number; None where the check could not run.
        threshold: what it is held to; None where it is only reported.
        at_least: whether the threshold is a floor (else a ceiling).
        note: why it could not run, or where it missed.
    """

    graph: str
    metric: str
    value: float | None
    threshold: float | None
    at_least: bool
    note: str = ""

    @property
    def status(self) -> str:
        """Passed, failed, skipped (could not run) or reported (held to nothing)."""
        if self.value is None:
            return "skipped"
        if self.threshold is None:
            return "reported"
        good = self.value >= self.threshold if self.at_least else self.value <= self.threshold
        return "passed" if good else "failed"  # NaN compares false: failed


@dataclass
class Report:
    """All checks of a bundle."""

    bundle: str
    precision: str
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        """Checks that missed their threshold."""
        return [c for c in self.checks if c.status == "failed"]

    @property
    def skipped(self) -> list[Check]:
        """Checks that could not run."""
        return [c for c in self.checks if c.status == "skipped"]


def require(report: Report) -> None:
    """Raise for the first check that failed.

    Raises:
        ParityError: naming it, its value and its threshold.
    """
    for check in report.failed:
        assert check.value is not None
        sign = "at least" if check.at_least else "at most"
        fix = "export with --precision fp32; if that fails too, please file an issue with the command you ran"
        if math.isnan(check.value):
            fix = "download the checkpoint again if its weights hold NaN or infinity; else export with --precision fp32"
        if check.metric == PROCESSED:
            fix = "export the checkpoint again, and leave generation_config.json of the bundle as it is"
        raise ParityError(
            f"{check.graph}: {check.metric} is {check.value:.3g}, not {sign} {check.threshold:g}. {check.note}".strip(),
            fix=fix,
        )
