"""Which sequences run together. The simplest choice: all that are not whole, a token of each a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Several

from fico_export.runtime.open_bundle import OpenBundle
from fico_export.runtime.prefix import Prefix
from fico_export.runtime.sequence import Sequence


def step(bundle: OpenBundle, sequences: Several[Sequence]) -> list[tuple[str, str]]:
    """Run a step of several sequences, each of which gets a token.

    Args:
        bundle: of all of them.
        sequences: that are not whole: prompts, and answers under way.

    Returns:
        The text that each token adds, and why its answer ends with it, as of `Sequence.take`.

    Raises:
        InputError: as of `Decoder.step`.
        EngineError: the decoder failed; the caches are as they were, or are dropped before their next prompt.
    """
    start = time.perf_counter()
    with bundle.owned():
        logits = [sequence.reduced() for sequence in sequences]
        left = [sequence for sequence, found in zip(sequences, logits, strict=True) if found is None]
        grown = iter(Prefix.extend(bundle, [(each.prefix, *each.waiting) for each in left]) if left else [])
        said = [
            sequence.take(next(grown) if found is None else found)
            for sequence, found in zip(sequences, logits, strict=True)
        ]
    for sequence in sequences:
        _note_time(sequence, (time.perf_counter() - start) * 1000)
    return said


def run(bundle: OpenBundle, sequences: Several[Sequence]) -> Iterator[tuple[Sequence, str]]:
    """Run sequences together until all answers are whole; each leaves when its own is.

    Yields:
        A sequence, and a piece of the text of its answer.
    """
    live = list(sequences)
    while live:
        going = []
        for sequence, (piece, reason) in zip(live, step(bundle, live), strict=True):
            sequence.answer.finish_reason = reason
            if not reason:
                going.append(sequence)
            if piece:
                yield sequence, piece
        live = going


def _note_time(sequence: Sequence, ms: float) -> None:
    answer, after_first = sequence.answer, len(sequence.answer.token_ids) - 1
    answer.stages_ms["decode" if after_first else "prefill"] += ms
    if after_first:
        answer.tpot_ms = answer.stages_ms["decode"] / after_first
    else:
        answer.ttft_ms = sum(answer.stages_ms.values())
