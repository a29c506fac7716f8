"""Each graph of a bundle against torch and transformers, on several pictures; then whole answers, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fico_export.bundle.manifest import Manifest
from fico_export.errors import EngineError
from fico_export.models.parts.family import Vlm as Checkpoint
from fico_export.parity.memory import available_bytes
from fico_export.parity.reference import Reference
from fico_export.parity.report import Check, Report
from fico_export.progress import Progress
from fico_export.runtime.prompt import Message
from fico_export.runtime.vlm import Vlm

# Errors are held to this share of the largest reference value. FP32: the same arithmetic in another order. FP16: its 10-bit
# mantissa over dozens of layers; which tokens are kept may then differ where scores nearly tie.
MAX_ERROR = {"fp32": 1e-3, "fp16": None}
COSINE = {"fp32": 0.99999, "fp16": 0.99}
# A row can differ much in FP16 without a fault: a token merged into the other of two targets that nearly tie.
MIN_ROW_COSINE = {"fp32": 0.9999, "fp16": None}
INDEX_AGREEMENT = {"fp32": 1.0, "fp16": 0.95}
TOKEN_AGREEMENT = {"fp32": 1.0, "fp16": None}
TIE = 1e-4  # two logits closer than this, relative to the largest, have no order that FP32 could keep

PICTURES = 4
NEW_TOKENS = 8


def verify_bundle(folder: Path, checkpoint: Checkpoint, *, progress: Progress) -> Report:
    """Compare a bundle with its checkpoint.

    Args:
        folder: of the bundle.
        checkpoint: what it was exported from.
        progress: told of each step.

    Returns:
        The numbers; nothing is raised for those that miss.
    """
    manifest = Manifest.load(folder)
    report = Report(manifest.name, manifest.precision)
    progress.stage("verify vision_encoder")
    vlm = Vlm(folder, backend="ort-cpu", lazy=True)  # the decoder only once memory was found to suffice
    pixels = [vlm.preprocess(picture) for picture in pictures(PICTURES)]
    _vision(report, manifest, checkpoint, vlm, pixels)

    needed = int(4 * 2.2 * sum(np.prod(s, dtype=np.int64) for s in checkpoint.shapes.values()))
    if (available := available_bytes()) is not None and available < needed:
        note = f"needs {needed / 1e9:.0f} GB of memory, {available / 1e9:.0f} GB are free"
        for graph in ("tower", "embed_tokens", "decoder_model_merged", "answers"):
            report.checks.append(Check(graph, "compared with transformers", None, None, True, note))
        return report
    progress.stage("verify decoder_model_merged")
    reference = Reference(checkpoint.folder)
    _tower(report, checkpoint, reference, pixels[0])
    _embed(report, vlm, reference)
    _decoder(report, vlm, reference)
    progress.stage("verify answers")
    _answers(report, vlm, reference)
    return report


def pictures(count: int) -> list[Image.Image]:
    """Pictures of many sizes with smooth, flat and noisy parts, the same on every machine."""
    made = []
    for i in range(count):
        generator = np.random.RandomState(i)
        height, width = (generator.randint(200, 500), generator.randint(200, 500))
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / (7 + 11 * c + i)) + np.cos(y / (5 + 13 * c)) for c in range(3)]
        canvas = (np.stack(waves, -1) + 2) * 63
        canvas[: height // 3, width // 2 :] = generator.randint(0, 255, 3)
        canvas[height // 2 :, : width // 3] += generator.randint(
            -60, 60, canvas[height // 2 :, : width // 3].shape
        )
        made.append(Image.fromarray(canvas.clip(0, 255).astype(np.uint8)))
    return made


def _vision(
    report: Report,
    manifest: Manifest,
    checkpoint: Checkpoint,
    vlm: Vlm,
    pixels: list[npt.NDArray[np.float32]],
) -> None:
    reduction = manifest.reduction
    plan = checkpoint.plan(reduction.method, reduction.keep, reduction.options)
    with torch.device("meta"):
        module = checkpoint.vision(plan, torch.float32)
    module = checkpoint.with_weights(module)
    agreements, pairs = [], []
    for picture in pixels:
        with torch.inference_mode():
            expected, expected_index = (np.asarray(t[0]) for t in module(torch.from_numpy(picture)))
        got = vlm.encode_pixels(picture)
        shared, mine, theirs = np.intersect1d(got.keep_index, expected_index, return_indices=True)
        agreements.append(len(shared) / len(expected_index))
        if shared.size:
            pairs.append((got.features[mine], expected[theirs]))
    threshold = INDEX_AGREEMENT[manifest.precision]
    report.checks.append(Check("vision_encoder", "kept-index agreement", min(agreements), threshold, True))
    if pairs:
        _compare(report, "vision_encoder", pairs)


def _tower(
    report: Report, checkpoint: Checkpoint, reference: Reference, pixels: npt.NDArray[np.float32]
) -> None:
    """Our torch tower without reduction against transformers': was the checkpoint read as it is meant?"""
    with torch.device("meta"):
        module = checkpoint.vision(checkpoint.plan("none", None, {}), torch.float32)
    with torch.inference_mode():
        features, _ = checkpoint.with_weights(module)(torch.from_numpy(pixels))
    cosine = _cosine(np.asarray(features[0]), reference.image_features(pixels))
    report.checks.append(Check("tower", "cosine to transformers", cosine, COSINE["fp32"], True))


def _embed(report: Report, vlm: Vlm, reference: Reference) -> None:
    ids = _token_ids(vlm.manifest, 32)
    _compare(report, "embed_tokens", [(vlm.embed(ids), reference.embed(ids))])


def _decoder(report: Report, vlm: Vlm, reference: Reference) -> None:
    """A sequence in pieces, prefill and single steps, each piece's last logits against the whole sequence's."""
    ids = _token_ids(vlm.manifest, 24)
    expected = reference.logits(reference.embed(ids), list(range(len(ids))))
    cache, pairs, start = vlm.decoder.new_cache(), [], 0
    for end in (13, 21, 22, 23, 24):
        logits = vlm.decoder.append(cache, vlm.embed(ids[start:end]), range(start, end))
        pairs.append((logits[None], expected[end - 1][None]))
        start = end
    _compare(report, "decoder_model_merged", pairs)


def _answers(report: Report, vlm: Vlm, reference: Reference) -> None:
    """Greedy answers of the runtime against transformers', which recomputes the whole sequence for each token."""
    equal, total, note = 0, 0, ""
    for images in ([], pictures(1), pictures(2)):
        try:
            answer = vlm.generate("What is in the picture?", images, max_new_tokens=NEW_TOKENS)
        except EngineError as error:  # such as logits that are NaN
            report.checks.append(Check("answers", "greedy tokens equal", 0.0, 1.0, True, error.what))
            return
        embeds, positions = _prompt(vlm, images, reference)
        for step, token in enumerate(answer.token_ids):
            logits = reference.logits(embeds, positions)[-1]
            total += 1
            if not logits.max() - logits[token] <= TIE * np.abs(logits).max():  # NaN parts too
                note = f"with {len(images)} pictures the answers part at token {step}"
                total += len(answer.token_ids) - step - 1
                break
            equal += 1
            embeds = np.concatenate([embeds, reference.embed([token])])
            positions.append(positions[-1] + 1)  # a prompt ends in text: its last position is its largest
    agreement = equal / total
    report.checks.append(
        Check("answers", "greedy tokens equal", agreement, TOKEN_AGREEMENT[report.precision], True, note)
    )


def _prompt(
    vlm: Vlm, images: list[Image.Image], reference: Reference
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Embeddings and position ids of the prompt, laid out from the manifest alone."""
    reduction, image_id = vlm.manifest.reduction, vlm.manifest.tokens.image_id
    ids = vlm.formatter.encode([Message("user", "What is in the picture?", len(images))], reduction.keep)
    encoded = [vlm.encode_image(image) for image in images]
    embeds = reference.embed([0 if i == image_id else i for i in ids])
    positions, position, seen = [], 0, 0
    for at, token in enumerate(ids):
        if token != image_id:
            positions.append(position)
            position += 1
            continue
        picture, row = divmod(seen, reduction.keep)
        seen += 1
        embeds[at] = encoded[picture].features[row]
        if reduction.positions == "compact":
            positions.append(position)
            position += 1
        else:
            positions.append(position + int(encoded[picture].keep_index[row]))
            if row == reduction.keep - 1:
                position += reduction.visual_tokens
    return embeds, positions


def _token_ids(manifest: Manifest, count: int) -> list[int]:
    ids = np.random.RandomState(0).randint(3, manifest.decoder.vocab_size, count)
    return [int(i) for i in ids]


def _compare(
    report: Report, graph: str, pairs: Sequence[tuple[npt.NDArray[Any], npt.NDArray[np.float32]]]
) -> None:
    """The worst over pairs of (computed, expected) rows [R, C]: error, cosine of the whole, cosine of a row."""
    errors, cosines, rows = [], [], []
    scale = max(float(np.abs(e).max(where=np.isfinite(e), initial=0.0)) for _, e in pairs)
    for got, expected in pairs:
        wide = got.astype(np.float32)
        with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, which passes nothing
            errors.append(np.abs(wide - expected).max())
        cosines.append(_cosine(wide.reshape(1, -1), expected.reshape(1, -1)))
        rows.append(_cosine(wide, expected))
    precision = report.precision
    tolerance = MAX_ERROR[precision]
    ceiling = None if tolerance is None else tolerance * scale
    report.checks += [
        Check(graph, "max abs error", float(np.max(errors)), ceiling, False),
        Check(graph, "cosine", float(np.min(cosines)), COSINE[precision], True),
        # np's: max and min of Python lose a NaN that is not the first
        Check(graph, "smallest cosine of a row", float(np.min(rows)), MIN_ROW_COSINE[precision], True),
    ]


def _cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Smallest cosine between rows of a and b [R, C]."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide_a, axis=-1) * np.linalg.norm(wide_b, axis=-1)
    with np.errstate(invalid="ignore"):
        return float(((wide_a * wide_b).sum(-1) / np.maximum(norms, 1e-30)).min())
