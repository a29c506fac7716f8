"""Each graph of a bundle against torch and transformers, on several images; then whole answers, token by token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fico_export.bundle import graph_names
from fico_export.bundle.manifest import Manifest
from fico_export.devices.memory import available_bytes
from fico_export.errors import EngineError
from fico_export.models.source import SourceModel
from fico_export.parity.answers import Given, answers, compare_answers
from fico_export.parity.compare import INDEX_AGREEMENT, compare
from fico_export.parity.int4 import StreamedReference, rounded
from fico_export.parity.prompts import NEW_TOKENS, QUESTION, Embedder, Prompt, asked_about, lay_out
from fico_export.parity.reference import (
    AnyReference,
    ReducedReference,
    Reference,
    clip_text_rows,
    reference_of,
)
from fico_export.parity.report import Check, Report
from fico_export.parity.vision import PICTURES, check_tower, check_vision, images_of
from fico_export.progress import Progress
from fico_export.runtime.backends.base import Step
from fico_export.runtime.inputs.positions import following
from fico_export.runtime.sampling import GREEDY
from fico_export.runtime.vlm import Vlm

GAPPED = np.array([at + at // 5 for at in range(24)])  # positions with gaps, as those of kept tokens have


def verify_bundle(folder: Path, checkpoint: SourceModel, *, progress: Progress) -> Report:
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
    exact = checkpoint
    if manifest.quantization is not None:
        weights = rounded(folder, exact.checkpoint, manifest.quantization)
        checkpoint = replace(exact, checkpoint=weights)
    progress.stage("verify vision_encoder")
    vlm = Vlm(folder, backend="ort-cpu", lazy=True)  # the decoder only once memory was found to suffice
    names = [profile.name for profile in manifest.profiles]
    same = names == [profile.name for profile in checkpoint.profiles]
    if not same:
        report.checks.append(Check("profiles", "those of the checkpoint", 0.0, 1.0, True))
    compared = {
        profile.graph: profile for profile in reversed(checkpoint.profiles)
    }  # the first of each graph
    shown = {
        profile.name: images_of(vlm, profile, checkpoint.profiles == (profile,))
        for profile in compared.values()
    }
    for profile in reversed(compared.values()) if same else ():
        if not (pixels := shown[profile.name]):
            report.checks.append(Check(profile.graph, "images that take it", 0.0, 1.0, True))
            continue
        check_vision(report, manifest, checkpoint, vlm, profile, pixels)

    if manifest.quantization is not None:
        _int4(report, vlm, exact, checkpoint, progress)
        return report
    copies = 3.2 if manifest.reduction.in_decoder else 2.2
    if note := _no_room(checkpoint, copies):
        for graph in ("tower", *(name for name in manifest.graphs if name not in compared), "answers"):
            report.checks.append(Check(graph, "compared with transformers", None, None, True, note))
        return report
    if checkpoint.clip is not None:
        progress.stage("verify clip_text")
        _clip_text(report, vlm, checkpoint.clip.folder)
    progress.stage("verify decoder")
    reference = reference_of(checkpoint)
    if isinstance(reference, Reference):
        check_tower(report, checkpoint, reference, shown[checkpoint.profile.name][-1])
    _embed(report, vlm, reference)
    _decoder(report, vlm, reference)
    reduced = None
    if manifest.reduction.in_decoder:
        progress.stage("verify decoder_prefill")
        plan = checkpoint.plan(manifest.reduction.method, manifest.reduction.keep, manifest.reduction.options)
        reduced = ReducedReference(checkpoint, plan)
        _prefill(report, vlm, reference, reduced)
    progress.stage("verify answers")
    try:
        report.checks += compare_answers(vlm, checkpoint.folder, answers(vlm, reference, reduced))
    except EngineError as error:  # such as logits that are NaN
        report.checks.append(Check("answers", "greedy tokens equal", 0.0, 1.0, True, error.what))
    return report


def _int4(report: Report, vlm: Vlm, exact: SourceModel, checkpoint: SourceModel, progress: Progress) -> None:
    """The graphs of an INT4 bundle against torch with the weights as rounded: one pass for all, layer by layer.

    A decoder that reduces needs its layers at once; where memory is short of them, that is skipped and said.
    """
    reference = StreamedReference(exact.checkpoint, checkpoint.checkpoint, exact.decoder_config)
    _embed(report, vlm, reference)
    ids = _token_ids(vlm.manifest, len(GAPPED))
    prompts = [Prompt(reference.embed(ids), _gapped(vlm), np.zeros(0, np.int64))]
    said, inside = [], vlm.manifest.reduction.in_decoder
    progress.stage("verify answers")
    for images in ([],) if inside else ([], asked_about(vlm, 1)):
        prompt = lay_out(vlm, images, reference)
        tokens = vlm.generate(QUESTION, images, max_new_tokens=NEW_TOKENS, sampling=GREEDY).token_ids
        said.append((images, len(prompt.embeds) - 1, tokens))
        after = following(prompt.positions, len(tokens) - 1)
        prompts.append(prompt.followed(reference.embed(tokens[:-1]), after))
    whole, *parts = reference.logits(prompts, report, progress)
    _pieces(report, vlm, ids, whole)
    given = [
        Given(images, tokens, part[start : start + len(tokens)])
        for part, (images, start, tokens) in zip(parts, said, strict=True)
    ]
    report.checks += compare_answers(vlm, exact.folder, given)
    if not inside:
        return
    if note := _no_room(checkpoint, 1.2):
        report.checks.append(Check(graph_names.PREFILL, "compared with torch", None, None, True, note))
        return
    progress.stage("verify decoder_prefill")
    reduction = vlm.manifest.reduction
    plan = checkpoint.plan(reduction.method, reduction.keep, reduction.options)
    _prefill(report, vlm, reference, ReducedReference(checkpoint, plan))


def _no_room(checkpoint: SourceModel, copies: float) -> str:
    """Why so many copies of the weights in FP32 cannot be held; empty where they can, or the system does not tell."""
    needed = int(4 * copies * sum(np.prod(s, dtype=np.int64) for s in checkpoint.shapes.values()))
    if (available := available_bytes()) is None or available >= needed:
        return ""
    return f"needs {needed / 1e9:.0f} GB of memory, {available / 1e9:.0f} GB are free"


def _embed(report: Report, vlm: Vlm, reference: Embedder) -> None:
    ids = _token_ids(vlm.manifest, 32)
    expected = reference.embed(ids)
    # The graph, and the rows that our runtime reads without it.
    compare(report, graph_names.EMBEDDING, [(vlm.embed_by_graph(ids), expected), (vlm.embed(ids), expected)])


def _clip_text(report: Report, vlm: Vlm, folder: Path) -> None:
    """The text tower and its mean over segments, on a prompt that fits and on one that does not."""
    pairs = []
    for prompt in (QUESTION, QUESTION * 20):
        rows = clip_text_rows(folder, vlm.clip_text.segments(prompt))
        pairs.append((vlm.clip_text(prompt), rows.mean(0, keepdims=True)))
    compare(report, graph_names.CLIP_TEXT, pairs)


def _decoder(report: Report, vlm: Vlm, reference: AnyReference) -> None:
    ids = _token_ids(vlm.manifest, len(GAPPED))
    _pieces(report, vlm, ids, reference.logits(reference.embed(ids), _gapped(vlm)))


def _gapped(vlm: Vlm) -> npt.NDArray[np.int64]:
    """[A, S] positions, equal on all axes."""
    return np.tile(GAPPED, (vlm.layout.axes, 1))


def _pieces(report: Report, vlm: Vlm, ids: list[int], expected: npt.NDArray[np.float32]) -> None:
    """A sequence in pieces, prefill and single steps, each piece's last logits against those of all at once [S, V].

    Its end is taken back once and said again.
    """
    cache, pairs = vlm.decoder.new_cache(), []
    for start, end in ((0, 13), (13, 21), (21, 22), (22, 23), (23, 24), (15, 23), (23, 24)):
        cache.drop_last(max(cache.lengths) - start)
        embeds, positions = vlm.embed(ids[start:end]), _gapped(vlm)[:, start:end]
        (logits,) = vlm.decoder.step([Step(cache, embeds, positions)])
        pairs.append((logits[None], expected[end - 1][None]))
    compare(report, vlm.manifest.decoder_name, pairs)


def _prefill(report: Report, vlm: Vlm, reference: Embedder, reduced: ReducedReference) -> None:
    """A prompt with an image through the graph that reduces, and two tokens after it, against torch."""
    agreements, pairs = [], []
    for picture in asked_about(vlm, PICTURES):
        prompt = lay_out(vlm, [picture], reference)
        embeds, positions, visual_rows, planes = prompt
        logits, cache, kept = vlm.decoder.prefill(embeds, positions, visual_rows, planes)
        expected = reduced.begin(*prompt)
        agreements.append(len(np.intersect1d(kept, reduced.kept)) / len(kept))
        pairs.append((logits[None], expected[None]))
        for i, token in enumerate(_token_ids(vlm.manifest, 2), 1):
            where = following(positions, i)[:, -1:]
            (logits,) = vlm.decoder.step([Step(cache, vlm.embed([token]), where)])
            pairs.append((logits[None], reduced.append(reference.embed([token]), where)[None]))
    threshold = INDEX_AGREEMENT[report.precision]
    report.checks.append(Check(graph_names.PREFILL, "kept-index agreement", min(agreements), threshold, True))
    compare(report, graph_names.PREFILL, pairs)


def _token_ids(manifest: Manifest, count: int) -> list[int]:
    ids = np.random.RandomState(0).randint(3, manifest.decoder.vocab_size, count)
    return [int(i) for i in ids]
