"""What many answers came to: spreads, ratios, and what the reducer costs where nobody tells."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from fico_export.bundle.manifest import Manifest
from fico_export.profile.record import Measured, Spread
from fico_export.runtime.answer import STAGES

NONE = "none"  # the method that keeps all visual tokens
AGREEMENT = 0.05  # between the sum of the stages and the end-to-end time


def spread(values: Sequence[float]) -> Spread:
    """Of milliseconds, one an iteration; percentiles between two values are interpolated linearly."""
    p10, median, p90, p99 = np.percentile(values, [10, 50, 90, 99]).tolist()
    return Spread(
        median=median,
        mean=statistics.fmean(values),
        p10=p10,
        p90=p90,
        p99=p99,
        least=min(values),
        most=max(values),
    )


def measured(
    folder: str, manifest: Manifest, answers: Sequence[dict[str, Any]], final: dict[str, Any]
) -> Measured:
    """A bundle's record, from what `worker.Worker` replied."""
    tpot = None if answers[0]["tpot_ms"] is None else spread([a["tpot_ms"] for a in answers])
    return Measured(
        bundle=folder,
        name=manifest.name,
        method=manifest.reduction.method,
        keep=manifest.reduction.keep,
        visual_tokens=manifest.reduction.visual_tokens,
        precision=manifest.precision,
        target=manifest.target,
        backend=final["backend"],
        prompt_tokens=answers[0]["prompt_tokens"],
        new_tokens=answers[0]["new_tokens"],
        stages={stage: spread([a["stages_ms"][stage] for a in answers]) for stage in STAGES},
        vision_parts=final["vision_parts"],
        ttft=spread([a["ttft_ms"] for a in answers]),
        tpot=tpot,
        end_to_end=spread([a["wall_ms"] for a in answers]),
        coverage=statistics.median(sum(a["stages_ms"].values()) / a["wall_ms"] for a in answers),
        tokens_per_second=1000 / tpot.median if tpot else None,
        host_peak_bytes=final["host_peak_bytes"],
        host_answering_bytes=final["host_answering_bytes"],
        device_peak_bytes=final["device_peak_bytes"],
    )


def ratios(bundles: Sequence[Measured]) -> dict[str, list[float]]:
    """By measure, each bundle's median over the first's."""
    rows = {stage: [b.stages[stage].median for b in bundles] for stage in STAGES}
    rows["ttft"] = [b.ttft.median for b in bundles]
    rows["tpot"] = [b.tpot.median if b.tpot else 0.0 for b in bundles]
    rows["end_to_end"] = [b.end_to_end.median for b in bundles]
    return {name: [value / row[0] for value in row] for name, row in rows.items() if row[0]}


def with_reducer_ms(bundles: Sequence[Measured], manifests: Sequence[Manifest]) -> list[Measured]:
    """The same records; one whose backend does not tell the parts gets its vision stage less that of `none`.

    That is of the same model, precision, target and backend, measured in the same run.
    """
    kinds = [
        (m.model.source, m.model.weights, m.precision, m.target, b.backend)
        for m, b in zip(manifests, bundles, strict=True)
    ]
    done = []
    for bundle, kind in zip(bundles, kinds, strict=True):
        base = next((b for b, k in zip(bundles, kinds, strict=True) if k == kind and b.method == NONE), None)
        if base is not None and bundle.method != NONE and not bundle.vision_parts:
            own = bundle.stages["vision"].median - base.stages["vision"].median
            bundle = bundle.model_copy(update={"reducer_ms": own})
        done.append(bundle)
    return done
