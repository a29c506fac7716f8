"""A checkpoint to a bundle on disk, written aside and renamed when it is whole and has passed its checks."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from fico_export.bundle import files, graph_names, manifest, newline
from fico_export.bundle.output import written_folder
from fico_export.bundle.profiles import NEWLINES, Profile
from fico_export.devices import catalog, targets
from fico_export.errors import ConfigError
from fico_export.exporter import awq, checks, context, precision, quantize, stream, trace, weights
from fico_export.exporter.graphs import GraphJob, graph_jobs
from fico_export.exporter.links import Links, link_files, written_bytes
from fico_export.models import clip_text
from fico_export.models.source import Files, SourceModel
from fico_export.models.weights import Weights
from fico_export.options import ExportOptions
from fico_export.progress import Progress
from fico_export.reducers.base.plan import ReductionPlan
from fico_export.reducers.base.reducer import Positions

_DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
_TOOLS = ("fico_export", "torch", "transformers", "onnx", "onnxscript", "onnx-ir")


@dataclass(frozen=True)
class Origin:
    """Where a model was found: its name, for the bundle's, and the alias, hub id or folder, for the manifest."""

    name: str
    source: str


def write_bundle(
    model: SourceModel,
    origin: Origin,
    options: ExportOptions,
    progress: Progress,
    *,
    device: catalog.Device | None = None,
    verify: Callable[[Path], None] | None = None,
    calibration: Sequence[stream.Tokens] = (),
) -> Path:
    """Export a model.

    Args:
        model: a loaded checkpoint.
        origin: where it was found.
        options: what to export, with method, precision and target named.
        progress: told of each step.
        device: that the bundle is for; None for any.
        verify: called on the finished folder before it gets its name; what it raises undoes the export.
        calibration: prompts to scale the channels by before INT4 rounding; none of them rounds as it is.

    Returns:
        The bundle's folder.

    Raises:
        ConfigError: the request does not fit the model or the target; nothing was written.
        ExportError: a graph could not be exported, or broke a rule.
    """
    assert options.method is not None
    assert options.precision is not None
    target = targets.get(options.target or targets.DEFAULT)
    quantization = precision.quantization(options, target, model.shapes, awq=bool(calibration))
    plan = model.plan(options.method, options.keep, options.settings)
    _require_clip(model, plan)
    rows = context.cache_rows(target, plan, model.decoder_config.context, options.max_context)
    context.require_batch(plan, options.max_batch)
    _require_one_image(model, plan)
    if options.positions == "compact" and plan.handed_over > plan.keep:
        raise ConfigError(
            f"--positions compact with --method {plan.method}, which removes tokens inside the decoder: "
            "those left keep the ids that they had",
            fix="drop --positions",
        )
    method = plan.method.replace("@", "").replace(",", "+")
    named = f"{origin.name}-{method}-k{plan.keep}-{options.precision}"
    bundle = Path(options.out) if options.out is not None else Path("engines") / named
    texts = model.files()
    per_row = context.bytes_per_row(model.decoder_config, 4 if options.precision == "fp32" else 2)
    cache = options.max_batch * (rows or 0) * per_row
    catalog.require_memory(device, _weight_bytes(model, options, quantization), cache)

    with ExitStack() as stack:
        folder = stack.enter_context(written_folder(bundle, overwrite=options.overwrite))
        before = {path: path.stat() for path in {s.file for s in model.checkpoint.tensors.values()}}
        links = _link(model, options, quantization, folder / "onnx")
        hashed = stack.enter_context(files.hashed_aside(links.paths))
        checkpoint = model.checkpoint
        if quantization is not None and calibration:
            factors = awq.search(checkpoint, model.decoder_config, calibration, quantization, progress)
            awq.save(factors, folder)
            checkpoint = awq.folded(checkpoint, factors)
        jobs = graph_jobs(model, plan, options.precision, target, quantization, rows, options.max_batch)
        graphs, embedding = _write_graphs(jobs, checkpoint, folder, target, quantization, links, progress)
        _write_texts(texts, folder)
        if model.newline is not None:
            newline.save(model.checkpoint.load(model.newline).to(torch.float32).numpy(), folder)
        if model.clip is not None:
            (folder / manifest.CLIP_TOKENIZER).write_text(model.clip.tokenizer, encoding="utf-8")
        progress.stage("hash")
        described = files.describe(folder, hashed.result())
        _manifest(
            model,
            origin,
            options,
            plan,
            bundle.name,
            graphs,
            embedding,
            target,
            quantization,
            described,
        ).save(folder)
        if verify is not None:
            verify(folder)
        files.require_unchanged(before)
    return bundle


def _write_graphs(
    jobs: Sequence[GraphJob],
    checkpoint: Weights,
    folder: Path,
    target: targets.Target,
    quantization: manifest.Quantization | None,
    links: Links,
    progress: Progress,
) -> tuple[dict[str, manifest.Graph], manifest.Table | None]:
    """Trace, write and check each graph.

    Returns:
        The graphs by name, and where the embeddings lie.
    """
    warned: set[str] = set()
    graphs: dict[str, manifest.Graph] = {}
    embedding: manifest.Table | None = None
    for job in jobs:
        progress.stage(f"trace {job.name}")
        graph = job.trace()
        graph.ir_version = target.ir_version
        if quantization is not None and job.quantized:
            quantize.bind(graph, checkpoint, quantization)
        weights.bind(graph, checkpoint, warned.add, links)
        with weights.own_errors():
            trace.simplify(graph)
            if job.shares:
                weights.share(graph, folder / job.shares)
            progress.stage(f"write {job.name}", weights.unwritten_bytes(graph))
            weights.save(graph, folder / job.file, progress.advance)
        graphs[job.name] = _describe(job, graph)
        if job.name == graph_names.EMBEDDING:
            embedding = _table(graph)
        progress.stage(f"check {job.name}")
        checks.check_graph(
            folder / job.file, target, static=job.static, quantized=job.quantized, opset=job.opset
        )
    for text in sorted(warned):
        progress.warn(text)
    return graphs, embedding


def _link(
    model: SourceModel, options: ExportOptions, quantization: manifest.Quantization | None, folder: Path
) -> Links:
    """Make the graphs' folder, with the checkpoint's files in it that they can use as they are.

    A quantised bundle is written whole: linked, it would drag along the weights that it does without.

    Raises:
        DiskError: what must be written beside them does not fit.
    """
    folder.mkdir()
    if quantization is not None:
        files.require_space(folder, _weight_bytes(model, options, quantization))
        return Links()
    dtype = _DTYPES[str(options.precision)]
    links = Links() if options.copy_weights else link_files(model.checkpoint, model.shapes, dtype, folder)
    files.require_space(folder, written_bytes(model.checkpoint, model.shapes, dtype, links))
    return links


def _weight_bytes(
    model: SourceModel, options: ExportOptions, quantization: manifest.Quantization | None
) -> int:
    """Bytes of all weights as the graphs hold them."""
    if quantization is not None:
        return quantize.total_bytes(model.shapes, quantization)
    return written_bytes(model.checkpoint, model.shapes, _DTYPES[str(options.precision)], Links())


def _require_one_image(model: SourceModel, plan: ReductionPlan) -> None:
    """Refuse a plan that reduces inside the decoder a video, or an image that the prompt does not show by one number of tokens."""
    if plan.handed_over == plan.keep:
        return
    if any(profile.frames > 1 for profile in model.profiles):
        raise ConfigError(
            f"--method {plan.method} reduces inside the decoder, which takes one image, and --frames asks for a video",
            fix="drop --frames, or choose a method that acts before the decoder: `fico list methods --verbose`",
        )
    totals = {model.plan_for(plan, profile).handed_over for profile in model.profiles}
    if len(totals) > 1:
        raise ConfigError(
            f"--method {plan.method} reduces inside the decoder, which takes one number of visual tokens, and these profiles have "
            + ", ".join(map(str, sorted(totals))),
            fix="give one --profile, and no --frames",
        )
    numbers = model.layout.numbers
    other = "choose a method that acts before the decoder: `fico list methods --verbose`"
    if numbers.get("unpad"):
        raise ConfigError(
            f"--method {plan.method} reduces inside the decoder, which takes one number of visual tokens, and with --unpad the shape "
            "of an image says how many show it",
            fix=f"drop --unpad, or {other}",
        )
    if numbers.get("newlines") == NEWLINES.index("rows"):
        raise ConfigError(
            f"--method {plan.method} reduces inside the decoder, where newlines stay whatever becomes of their rows' tokens",
            fix=f"--newlines all, drop --newlines, or {other}",
        )


def _require_clip(model: SourceModel, plan: ReductionPlan) -> None:
    """Refuse a plan that reads the text in CLIP's space without a CLIP model, and a CLIP model that nothing reads."""
    if plan.reads("clip_text") and model.clip is None:
        raise ConfigError(
            f"--method {plan.method} compares the image with the prompt in CLIP's space, and no CLIP model was named",
            fix=f"--clip-text MODEL, the CLIP model that the vision tower comes from: {', '.join(clip_text.ALIASES)}, "
            "a hub id or a folder",
        )
    if model.clip is not None and not plan.reads("clip_text"):
        raise ConfigError(
            f"--clip-text, and nothing of --method {plan.method} with {plan.keep} of {plan.visual_tokens} tokens reads it",
            fix="drop --clip-text",
        )


def _describe(job: GraphJob, model: ir.Model) -> manifest.Graph:
    def spec(value: ir.Value) -> manifest.TensorSpec:
        assert value.name is not None
        assert value.dtype is not None
        assert value.shape is not None
        shape = [d if isinstance(d, int) else str(d.value) for d in value.shape]
        return manifest.TensorSpec(name=value.name, dtype=value.dtype.numpy().name, shape=shape)

    graph = model.graph
    return manifest.Graph(
        file=job.file,
        inputs=[*map(spec, graph.inputs)],
        outputs=[*map(spec, graph.outputs)],
        weight_bytes=weights.nbytes(model),
    )


def _table(model: ir.Model) -> manifest.Table | None:
    """Where the matrix lies whose rows a saved graph gathers; None where they are no plain numbers."""
    gathered = {node.inputs[0] for node in model.graph if node.op_type == "Gather"}
    for value in model.graph.initializers.values():
        stored = value.const_value
        if value in gathered and isinstance(stored, ir.ExternalTensor) and len(stored.shape) == 2:
            rows, channels = stored.shape.numpy()
            return manifest.Table(
                file=f"onnx/{stored.location}",
                offset=stored.offset or 0,
                dtype=stored.dtype.numpy().name,
                shape=(rows, channels),
            )
    return None


def _write_texts(texts: Files, folder: Path) -> None:
    contents: dict[str, Any] = {
        "config.json": texts.config,
        "generation_config.json": texts.generation_config,
        "preprocessor_config.json": texts.preprocessor,
        "processor_config.json": texts.processor,
        "tokenizer_config.json": texts.tokenizer_config,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(texts.tokenizer, encoding="utf-8")
    if texts.chat_template is not None:
        (folder / "chat_template.jinja").write_text(texts.chat_template, encoding="utf-8")


def _reduction(plan: ReductionPlan, positions: Positions, layers: int) -> manifest.Reduction:
    steps = [
        manifest.Step(
            method=step.method,
            site=step.reducer.site.value,
            before=step.before,
            keep=step.keep,
            schedule=step.schedule,
        )
        for step in plan.steps
    ]
    return manifest.Reduction(
        method=plan.method,
        options=plan.settings,
        steps=steps,
        visual_tokens=plan.visual_tokens,
        handed_over=plan.handed_over,
        keep=plan.keep,
        cached=plan.cached(layers),
        positions=positions,
    )


def _handed_over(profile: Profile, plan: ReductionPlan) -> Profile:
    shares = plan.shares() if profile.tiles > 1 else []
    return profile.model_copy(update={"handed_over": plan.handed_over, "shares": shares})


def _manifest(
    model: SourceModel,
    origin: Origin,
    options: ExportOptions,
    plan: ReductionPlan,
    name: str,
    graphs: dict[str, manifest.Graph],
    embedding: manifest.Table | None,
    target: targets.Target,
    quantization: manifest.Quantization | None,
    described: dict[str, manifest.File],
) -> manifest.Manifest:
    config = model.decoder_config
    return manifest.Manifest(
        name=name,
        request=options.repeated(),
        model=manifest.Model(
            model_type=model.model_type,
            source=origin.source,
            revision=model.revision,
            weights=model.weights(),
        ),
        clip_text=model.clip
        and manifest.Model(
            model_type="clip",
            source=model.clip.source,
            revision=model.clip.revision,
            weights=model.clip.weights(),
        ),
        reduction=_reduction(plan, options.positions or plan.positions, config.layers),
        decoder=manifest.Decoder(
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            context=config.context,
        ),
        tokens=model.tokens,
        profiles=[_handed_over(profile, model.plan_for(plan, profile)) for profile in model.profiles],
        layout=model.layout,
        max_batch=options.max_batch,
        precision=options.precision,
        quantization=quantization,
        target=target.name,
        device=options.device,
        opset=target.opset,
        ir_version=target.ir_version,
        graphs=graphs,
        embedding=embedding,
        tools={"python": platform.python_version(), **{tool: version(tool) for tool in _TOOLS}},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files=described,
    )
