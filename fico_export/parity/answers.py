"""Whole greedy answers of a bundle against what transformers' ``generate`` would have said, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fico_export.parity.choice import generate_scores
from fico_export.parity.prompts import (
    NEW_TOKENS,
    QUESTION,
    asked_about,
    fits,
    ids,
    lay_out,
    whole_ids,
)
from fico_export.parity.reference import AnyReference, ReducedReference
from fico_export.parity.report import PROCESSED, Check
from fico_export.runtime.inputs.positions import following
from fico_export.runtime.sampling import GREEDY
from fico_export.runtime.vlm import Vlm

TOKEN_AGREEMENT = {"fp32": 1.0, "fp16": None, "int4": None}
TIE = 1e-4  # two logits closer than this, relative to the largest, have no order that FP32 could keep

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Given:
    """A greedy answer of the runtime.

    Attributes:
        pictures: that the question was about.
        tokens: its token ids [T].
        logits: of the reference before each of them, [T, V].
    """

    pictures: list[Image.Image]
    tokens: list[int]
    logits: Logits


def answers(vlm: Vlm, reference: AnyReference, reduced: ReducedReference | None) -> list[Given]:
    """Greedy answers of the runtime, with the logits that transformers has where they stand.

    Where the decoder reduces, torch runs this package's own modules: transformers has no such decoder.

    Raises:
        EngineError: the graphs give no numbers to choose by.
    """
    given = []
    for count in (0, 1) if reduced else (0, 1, 2):
        images = asked_about(vlm, count)
        if not fits(vlm, images):
            continue
        tokens = vlm.generate(QUESTION, images, max_new_tokens=NEW_TOKENS, sampling=GREEDY).token_ids
        prompt = lay_out(vlm, images, reference)
        after = following(prompt.positions, len(tokens) - 1)
        if reduced and images:
            rows = [reduced.begin(*prompt)]
            rows += [
                reduced.append(reference.embed([token]), after[:, [i]]) for i, token in enumerate(tokens[:-1])
            ]
            logits = np.stack(rows)
        else:
            whole = prompt.followed(reference.embed(tokens[:-1]), after)
            logits = reference.logits(whole.embeds, whole.positions, whole.planes)[len(prompt.embeds) - 1 :]
        given.append(Given(images, tokens, logits))
    return given


def compare_answers(vlm: Vlm, folder: Path, given: Sequence[Given]) -> list[Check]:
    """Hold answers to what ``generate`` takes after the same logits, under the checkpoint's own generation config.

    Args:
        vlm: the bundle's runtime.
        folder: of the checkpoint.
        given: its answers.

    Returns:
        How many tokens are equal; and, whatever the precision, at how many the runtime makes of the reference's logits what
        ``generate`` makes of them.

    Raises:
        EngineError: the reference's logits are no numbers to choose by.
    """
    equal, alike, total, notes = 0, 0, 0, ["", ""]
    for answer in given:
        theirs = generate_scores(
            folder, answer.logits, answer.tokens, whole_ids(vlm, answer.pictures), vlm.manifest.tokens.eos_ids
        )
        ours = _own_scores(vlm, answer)
        total += len(answer.tokens)
        steps = len(answer.tokens)
        parted = next((i for i in range(steps) if not _taken(answer, theirs, i)), steps)
        other = [i for i in range(steps) if i >= len(theirs) or not _alike(ours[i], theirs[i])]
        equal, alike = equal + parted, alike + steps - len(other)
        where = f"with {len(answer.pictures)} images"
        if parted < steps:
            notes[0] = f"{where} the answers part at token {parted}"
        if other:
            notes[1] = (
                f"{where} generation_config.json changes the logits of token {other[0]} as generate does not"
            )
    threshold = TOKEN_AGREEMENT[vlm.manifest.precision]
    return [
        Check("answers", "greedy tokens equal", equal / total, threshold, True, notes[0]),
        Check("answers", PROCESSED, alike / total, 1.0, True, notes[1]),
    ]


def _taken(answer: Given, scores: Logits, step: int) -> bool:
    """Whether a token has the largest score, or ties with it."""
    if step >= len(scores):
        return False  # generate's answer had ended
    short = scores[step].max() - scores[step][answer.tokens[step]]
    return bool(short <= TIE * np.abs(answer.logits[step]).max())  # NaN parts too


def _own_scores(vlm: Vlm, answer: Given) -> list[Logits]:
    """What the runtime makes of the reference's logits before each token."""
    sizes = [picture.size for picture in answer.pictures]
    sampler = vlm.sampler(GREEDY, ids(vlm, len(sizes)), sizes)
    scores = []
    for row, token in zip(answer.logits, answer.tokens, strict=True):
        scores.append(sampler.scores(row))
        sampler.accept(token)
    return scores


def _alike(ours: Logits, theirs: Logits) -> bool:
    scale = float(np.abs(theirs).max(where=np.isfinite(theirs), initial=1.0))
    return bool(np.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale, equal_nan=True))
