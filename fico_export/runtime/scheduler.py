"""Which sequences run together. The simplest choice: all that are not whole, a token of each a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Several

from fico_export.errors import ConfigError
from fico_export.runtime.open_bundle import OpenBundle
from fico_export.runtime.prefix import Prefix
from fico_export.runtime.sequence import Sequence


def step(bundle: OpenBundle, sequences: Several[Sequence]) -> list[tuple[str, str]]:
    """Run a step of several sequences, each of which gets a token.

    Args:
        bundle: of all of them.
        sequences: that are not whole: prompts, and answers under way.

    Returns:
        The text that each token adds, and why its answer ends with it, as of `Sequence.take`. A sequence whose logits are no numbers
        has an `error`, and the others go on.

    Raises:
        ConfigError: a sequence has lost its KV cache, or comes twice; nothing was run.
        InputError: tokens that there is no room for; no sequence has changed.
        EngineError: the decoder failed; no sequence has changed.
    """
    start = time.perf_counter()
    with bundle.owned():
        _require_apart(sequences)
        for sequence in sequences:
            sequence.require()
        left = [sequence for sequence in sequences if sequence.reduce()]
        found = Prefix.extend(bundle, [(each.prefix, *each.waiting) for each in left]) if left else []
        for sequence, logits in zip(left, found, strict=True):
            sequence.give(logits)
        said = [sequence.take() for sequence in sequences]
    for sequence in sequences:
        _note_time(sequence, (time.perf_counter() - start) * 1000)
    return said


def run(bundle: OpenBundle, sequences: Several[Sequence]) -> Iterator[tuple[Sequence, str]]:
    """Run sequences together until all answers are whole; each leaves when its own is, or when it has an `error`.

    Yields:
        A sequence, and a piece of the text of its answer.
    """
    live = list(sequences)
    while live:
        going = []
        for sequence, (piece, reason) in zip(live, step(bundle, live), strict=True):
            sequence.answer.finish_reason = reason
            if not reason and sequence.error is None:
                going.append(sequence)
            if piece:
                yield sequence, piece
        live = going


def _require_apart(sequences: Several[Sequence]) -> None:
    if len({id(sequence.prefix) for sequence in sequences}) < len(sequences):
        raise ConfigError(
            "two of the sequences are of one conversation, which has one KV cache",
            fix="begin each in a conversation of its own: vlm.chat().begin(…)",
        )


def _note_time(sequence: Sequence, ms: float) -> None:
    answer, after_first = sequence.answer, len(sequence.answer.token_ids) - 1
    if sequence.error is not None:
        return
    answer.stages_ms["decode" if after_first else "prefill"] += ms
    if after_first:
        answer.tpot_ms = answer.stages_ms["decode"] / after_first
    else:
        answer.ttft_ms = sum(answer.stages_ms.values())
