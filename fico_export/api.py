"""The Python interface: `fico_export.export(...)` and `fico_export.load(...)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fico_export.errors import CheckpointError, ConfigError, FicoError
from fico_export.options import ExportOptions, documented, signature
from fico_export.progress import Progress, Silent

if TYPE_CHECKING:
    from fico_export.bundle.manifest import Manifest
    from fico_export.bundle.manifest import Model as Origin
    from fico_export.models.clip_text import Clip
    from fico_export.models.source import Architecture, SourceModel
    from fico_export.parity.report import Report
    from fico_export.runtime.inputs.images import ImageSource
    from fico_export.runtime.vlm import Vlm

OriginT = TypeVar("OriginT", "SourceModel", "Clip")


def export(
    model: str | Path = "demo", keep: int | None = None, *, progress: Progress | None = None, **options: Any
) -> Path:
    """Export a LLaVA checkpoint to a bundle of ONNX graphs with its visual tokens reduced to K.

    Args:
        model: an alias (`llava-1.5-7b`), a hub id, a checkpoint folder, or `demo`.
        keep: number of visual tokens to keep, K; None keeps all, with method `none`, or the last budget of a chain.
        progress: told of each step.
        options: all others, by keyword; None is the default.
        {options}

    Returns:
        The bundle's folder.

    Raises:
        ConfigError: the request or the checkpoint cannot be used; nothing was written.
        ExportError: a graph could not be exported, or broke a rule.
        ParityError: a graph does not compute what torch computes.
    """
    from fico_export.calibration import read_prompts
    from fico_export.devices import catalog
    from fico_export.exporter.precision import resolve
    from fico_export.exporter.write import Origin, write_bundle
    from fico_export.models.clip_text import open_clip
    from fico_export.parity.report import require
    from fico_export.parity.verify import verify_bundle
    from fico_export.reducers import with_method

    progress = progress or Silent()
    asked = with_method(ExportOptions.of({"model": model, "keep": keep, **options}))
    device = catalog.get(asked.device, asked.devices) if asked.device is not None else None
    catalog.resolve(device, asked.target, asked.precision)  # refuses what no checkpoint could change
    progress.stage("read checkpoint")
    checkpoint = open_checkpoint(str(asked.model), asked.revision)
    target, precision, gave_way = resolve(device, asked, checkpoint.shapes)
    if gave_way:
        progress.warn(gave_way)
    checkpoint = checkpoint.shaped(asked)
    if asked.clip_text is not None:
        checkpoint = checkpoint.with_clip(open_clip(str(asked.clip_text)))
    _require_answerable(checkpoint, progress)

    def check(folder: Path) -> None:
        report = verify_bundle(folder, checkpoint, progress=progress)
        for skipped in report.skipped:
            progress.warn(f"{skipped.graph}: not {skipped.metric}: {skipped.note}")
        require(report)

    name, source = Path(asked.model).expanduser().resolve().name, _source(str(asked.model), checkpoint)
    return write_bundle(
        checkpoint,
        Origin(name, source),
        replace(asked, target=target.name, precision=precision),
        progress,
        device=device,
        verify=check if asked.verify else None,
        calibration=read_prompts(Path(asked.calibrate), checkpoint) if asked.calibrate is not None else (),
    )


export.__doc__ = documented(export.__doc__ or "")
export.__signature__ = signature({"progress": None})  # type: ignore[attr-defined]


def load(bundle: str | Path, *, backend: str = "auto", threads: int = 0, low_memory: bool = False) -> Vlm:
    """Load a bundle to answer with: `.generate()`, `.stream()`, `.chat()`, `.encode_image()`.

    Args:
        bundle: its folder.
        backend: auto, ort-cpu, ort-cuda, trt or rtx; auto takes engines where there are any that fit, else the GPU, else the CPU.
        threads: CPU threads within an operator; 0 for one per core.
        low_memory: load each graph when it is needed, in the place of the one before.

    Raises:
        BundleError: the bundle is missing, damaged, or from a newer version.
        ConfigError: the backend cannot run here, or the graphs do not fit into memory.
        EngineError: a graph cannot be loaded.
    """
    from fico_export.runtime.vlm import Vlm

    return Vlm(bundle, backend=backend, threads=threads, low_memory=low_memory)


def verify(
    bundle: str | Path,
    *,
    model: str | None = None,
    clip_text: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare a bundle with the checkpoint it came from.

    Args:
        bundle: its folder.
        model: where the checkpoint is now; where the manifest says, by default.
        clip_text: likewise of the CLIP model, of a bundle that has one.
        progress: told of each step.

    Raises:
        BundleError: the bundle is missing or damaged.
        CheckpointError: the checkpoint has moved, or is not the one the bundle came from.
    """
    from fico_export.bundle import files
    from fico_export.bundle.manifest import Manifest
    from fico_export.parity.verify import verify_bundle

    progress = progress or Silent()
    folder = Path(bundle)
    manifest = Manifest.load(folder)
    progress.stage("hash")
    files.check(folder, manifest, full=True)
    progress.stage("read checkpoint")
    return verify_bundle(folder, checkpoint_of(folder, manifest, model, clip_text), progress=progress)


def report(
    bundles: Sequence[str | Path],
    out: str | Path,
    *,
    images: ImageSource | Iterable[ImageSource] = (),
    prompt: str | None = None,
    profiles: Sequence[str | Path] = (),
    evaluation: str | Path | None = None,
    model: str | None = None,
    clip_text: str | None = None,
    backend: str = "auto",
    progress: Progress | None = None,
) -> Path:
    """Write one self-contained HTML page about bundles: latency, memory, graphs, environment, and what they keep of images.

    Args:
        bundles: their folders.
        out: the page's file.
        images: the image or images to show what is kept of.
        prompt: the question, for bundles whose method reads it.
        profiles: what `fico profile` wrote; by default what lies in the bundles' folders.
        evaluation: results.json of `scripts/evaluate.py`.
        model: where the bundles' checkpoint is now, for the maps of merges; where the manifests say, by default, if that is here.
        clip_text: likewise of the CLIP model.
        backend: auto, ort-cpu or ort-cuda.
        progress: told of each step.

    Returns:
        The page's file.

    Raises:
        BundleError: a bundle is missing or damaged.
        ConfigError: a profile is of other bundles, a file cannot be read or written, or matplotlib is missing.
        InputError: not an image, or no prompt for a bundle that reads it.
    """
    from fico_export import models
    from fico_export.report.write import ReportRequest, write_report
    from fico_export.runtime.inputs.images import image_list

    def checkpoint(folder: Path, manifest: Manifest) -> SourceModel:
        source = manifest.model.source
        if model is None and source != models.DEMO and not Path(source).is_absolute():
            raise CheckpointError(
                f"{source} is a model of the hub, which a report does not download",
                fix=f"give --model {source}, or the folder where it lies",
            )
        return checkpoint_of(folder, manifest, model, clip_text)

    request = ReportRequest(
        bundles=[Path(bundle) for bundle in bundles],
        out=Path(out),
        images=cast("list[ImageSource]", image_list(images)),
        prompt=prompt,
        profiles=[Path(profile) for profile in profiles],
        evaluation=Path(evaluation) if evaluation is not None else None,
        backend=backend,
        require_checkpoint=model is not None,
    )
    write_report(request, checkpoint, progress or Silent())
    return Path(out)


def checkpoint_of(folder: Path, manifest: Manifest, model: str | None, clip_text: str | None) -> SourceModel:
    """The checkpoint that a bundle came from, with its CLIP model.

    Args:
        folder: of the bundle.
        manifest: its manifest.
        model: where the checkpoint is now; where the manifest says, by default.
        clip_text: likewise of the CLIP model, of a bundle that has one.

    Raises:
        CheckpointError: one of them has moved, or is not the one the bundle came from.
    """
    from fico_export.models.clip_text import open_clip

    checkpoint = _origin(folder, manifest.model, "--model", model, open_checkpoint)
    asked = ExportOptions.of(manifest.request, f"the request in the manifest of {folder}")
    checkpoint = checkpoint.shaped(replace(asked, method=manifest.reduction.method))
    if manifest.clip_text is not None:
        clip = _origin(folder, manifest.clip_text, "--clip-text", clip_text, open_clip)
        return checkpoint.with_clip(clip)
    if clip_text is not None:
        raise ConfigError(f"--clip-text, and {folder} has no graph of a CLIP model", fix="drop --clip-text")
    return checkpoint


def _origin(
    folder: Path, made: Origin, flag: str, given: str | None, load: Callable[[str, str | None], OriginT]
) -> OriginT:
    """The checkpoint that a bundle came from, at the place `given` or where its manifest says.

    Raises:
        CheckpointError: it is not there, or another one is.
    """
    source = given or made.source
    if given is None and Path(source).is_absolute() and not Path(source).is_dir():
        raise CheckpointError(
            f"the checkpoint that {folder} came from is no longer at {source}",
            fix=f"give {flag} FOLDER, where it is now",
        )
    checkpoint = load(source, made.revision)
    weights = checkpoint.weights()
    if weights != made.weights:
        raise CheckpointError(
            f"{source} is not the checkpoint that {folder} came from: its weights are {_sizes(weights)}, "
            f"those of the bundle were {_sizes(made.weights)}",
            fix=f"give {flag} FOLDER with the checkpoint it came from, or export this one",
        )
    return checkpoint


def _sizes(weights: dict[str, int]) -> str:
    return f"{sum(weights.values())} bytes in {', '.join(sorted(weights))}"


def _require_answerable(checkpoint: SourceModel, progress: Progress) -> None:
    """Have the runtime prepare a prompt with an image, before hours are spent on graphs it could not use.

    Raises:
        ConfigError: the tokenizer, the chat template or the image processor cannot be used.
    """
    from PIL import Image

    from fico_export.runtime.inputs.layout import Layout
    from fico_export.runtime.inputs.preprocess import ImageProcessor
    from fico_export.runtime.inputs.prompt import Message, PromptFormatter

    texts = checkpoint.files()
    for text in texts.warnings:
        progress.warn(text)
    formatter = PromptFormatter(texts.tokenizer, texts.chat_template, checkpoint.tokens)
    try:
        formatter.encode([Message("user", "?", 1)])
    except FicoError as error:
        raise CheckpointError(
            f"the chat template of {checkpoint.folder} cannot ask about an image: {error.what}",
            fix=f"{texts.other_template}: one that shows an image as {checkpoint.tokens.image}",
        ) from error
    if formatter.content == "text":
        progress.warn(
            f"the chat template of {checkpoint.folder} takes texts alone, as language models' own do: an image becomes "
            f"{checkpoint.tokens.image!r} and a new line before the text; if the model was trained on another form, "
            f"{texts.other_template} and export again"
        )
    layout = Layout(checkpoint.layout, checkpoint.profiles, "original", checkpoint.tokens.image_id)
    blank, processor = Image.new("RGB", (3, 2)), ImageProcessor.from_config(texts.preprocessor)
    sees = layout.profile(blank.size).size
    height, width = layout.pixels(blank, processor).values.shape[2:]
    if (height, width) != sees:
        raise CheckpointError(
            f"preprocessor_config.json makes images of {width}×{height}, the tower sees {sees[1]}×{sees[0]}",
            fix="use preprocessor_config.json and config.json of one checkpoint",
        )


def _source(model: str, checkpoint: SourceModel) -> str:
    """What finds the model again from anywhere: a name as it is, a folder as an absolute path."""
    from fico_export import models

    return str(checkpoint.folder) if model != models.DEMO and Path(model).expanduser().is_dir() else model


def open_checkpoint(model: str, revision: str | None) -> SourceModel:
    """A loaded checkpoint; `demo` is the one that this package brings along."""
    from fico_export import demo, models

    return models.load(demo.FOLDER) if model == models.DEMO else models.load(*models.find(model, revision))


def open_architecture(model: str, revision: str | None = None) -> Architecture:
    """What a model's config.json says; of a hub model nothing else is downloaded, of an alias nothing at all.

    Raises:
        ConfigError: no such model, or one of a family that is not supported.
    """
    from fico_export import demo, models

    if model == models.DEMO:
        return models.describe(demo.FOLDER)
    packaged = models.packaged(model) if revision is None else None
    return models.describe(packaged or models.find(model, revision, models.CONFIG)[0])
