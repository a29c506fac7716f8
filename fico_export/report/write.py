"""Gathers what is known of bundles, runs them on the images, and writes the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fico_export import extras
from fico_export.bundle import files
from fico_export.bundle.manifest import Manifest
from fico_export.bundle.output import require_matplotlib, require_writable, written_file
from fico_export.errors import CheckpointError, ConfigError, InputError
from fico_export.progress import Progress
from fico_export.report import charts, evidence
from fico_export.report.gallery import Item, Tracer, item
from fico_export.report.page import Bundle, Content, render
from fico_export.runtime.inputs.image_sources import ImageSource, path_of
from fico_export.runtime.inputs.images import load_image
from fico_export.runtime.vlm import Vlm

if TYPE_CHECKING:
    from fico_export.models.source import SourceModel
    from fico_export.report.graphs import Statistics

NO_PROFILE = "No profile was given, and none lies in the bundles. `fico profile BUNDLE…` makes one: --profile FILE.json"
NO_PICTURE = "No image was given: --image PICTURE"

Opener = Callable[[Path, Manifest], "SourceModel"]


@dataclass(frozen=True)
class ReportRequest:
    """What a page is to be of; as the arguments of `fico_export.api.report`.

    Attributes:
        require_checkpoint: whether a checkpoint that cannot be used is an error, or only leaves out the maps of merges.
    """

    bundles: list[Path]
    out: Path
    images: list[ImageSource]
    prompt: str | None
    profiles: list[Path]
    evaluation: Path | None
    backend: str
    require_checkpoint: bool


def write_report(request: ReportRequest, checkpoint_of: Opener, progress: Progress) -> None:
    """Write the page; what is wrong with the request is found before the slow part.

    Args:
        request: what of.
        checkpoint_of: opens the checkpoint that a bundle came from, or raises CheckpointError.
        progress: told of each step.

    Raises:
        BundleError, CheckpointError, ConfigError, InputError: as `fico_export.api.report`.
    """
    pictures = [path for image in request.images if (path := path_of(image)) is not None]
    inputs = [*pictures, *request.profiles, *([request.evaluation] if request.evaluation else [])]
    require_writable(request.out, ".html", inputs)
    if len({folder.resolve() for folder in request.bundles}) < len(request.bundles):
        raise ConfigError("a bundle is given twice", fix="give each bundle once")
    bundles = [(folder, Manifest.load(folder)) for folder in request.bundles]
    runs = evidence.profiles(bundles, request.profiles)
    results = evidence.evaluation(request.evaluation) if request.evaluation else None
    if runs:
        require_matplotlib(charts.WHAT)
    for image in request.images:
        load_image(image)
    for folder, manifest in bundles:
        files.check(folder, manifest, full=False)

    notes: dict[str, list[str]] = {"latency": [] if runs else [NO_PROFILE], "gallery": [], "graphs": []}
    if results is not None and not runs:
        notes["latency"].append(
            "The evaluation is not drawn: accuracy is set against latency, which a profile tells."
        )
    described = []
    read_graphs = find_spec("onnx_ir") is not None
    if not read_graphs:
        notes["graphs"].append(f"The graphs were not read, that takes onnx-ir: {extras.install('export')}")
    for folder, manifest in bundles:
        progress.stage(f"graphs of {manifest.name}")
        described.append(Bundle(folder, manifest, _statistics(folder, manifest) if read_graphs else None))
    content = Content(
        bundles=described,
        runs=runs,
        results=results,
        gallery=_gallery(request, bundles, checkpoint_of, notes["gallery"], progress),
        prompt=request.prompt,
        notes=notes,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )
    progress.stage("page")
    page = render(content)
    with written_file(request.out) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")  # a name may be no Unicode


def _statistics(folder: Path, manifest: Manifest) -> list[Statistics]:
    from fico_export.report.graphs import statistics

    return statistics(folder, manifest)


def _gallery(
    request: ReportRequest,
    bundles: list[tuple[Path, Manifest]],
    checkpoint_of: Opener,
    notes: list[str],
    progress: Progress,
) -> list[Item]:
    """Every image in every bundle, by image; bundle after bundle, so that one is in memory at a time."""
    if not request.images:
        notes.append(NO_PICTURE)
        return []
    made: list[list[Item]] = []
    for folder, manifest in bundles:
        progress.stage(f"images in {manifest.name}")
        vlm = Vlm(folder, backend=request.backend, lazy=True)
        tracer, note = _tracer(folder, manifest, checkpoint_of, required=request.require_checkpoint)
        notes += [note] if note else []
        try:
            made.append([item(vlm, image, request.prompt, tracer) for image in request.images])
        except InputError as error:
            raise InputError(f"{folder}: {error.what}", fix=error.fix) from error
    return [items[i] for i in range(len(request.images)) for items in made]


def _tracer(
    folder: Path, manifest: Manifest, checkpoint_of: Opener, *, required: bool
) -> tuple[Tracer | None, str]:
    """What follows the tokens of an image in torch; or None, and why."""
    if find_spec("torch") is None:
        return None, f"No maps of merges: they take torch: {extras.install('export')}"
    from fico_export.report.merges import encoder, trace

    try:
        checkpoint = checkpoint_of(folder, manifest)
    except CheckpointError as error:
        if required:
            raise
        return None, f"No maps of merges for {manifest.name}: {error.what}; {error.fix}"
    reduction = manifest.reduction
    module_of = encoder(checkpoint, reduction.method, reduction.keep, reduction.options)
    return lambda profile, feeds: trace(module_of(profile.name), feeds), ""
