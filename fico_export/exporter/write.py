"""A checkpoint to a bundle on disk, written aside and renamed when it is whole and has passed its checks."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from fico_export.bundle import files, manifest
from fico_export.devices import catalog, targets
from fico_export.errors import ConfigError
from fico_export.exporter import checks, trace, weights
from fico_export.exporter.graphs import DTYPES, GraphJob, graph_jobs
from fico_export.models.parts import clip_text
from fico_export.models.parts.family import Files, Vlm
from fico_export.progress import Progress
from fico_export.reducers.base.plan import Plan

_TOOLS = ("fico_export", "torch", "transformers", "onnx", "onnxscript", "onnx-ir")


@dataclass(frozen=True)
class Request:
    """What to export, as asked for.

    Attributes:
        name: of the model, for the bundle's name.
        source: alias, hub id or folder, for the manifest.
        method: a reducer's name.
        keep: visual tokens to hand to the decoder; None for all, with method `none`.
        settings: options of the method.
        precision: fp32 or fp16.
        target: a target's name.
        device: that the bundle is for; None for any.
        positions: policy for position ids; None for the method's own.
        out: the bundle's folder; None for engines/<model>-<method>-k<K>-<precision>.
        overwrite: replace a bundle that is there.
    """

    name: str
    source: str
    method: str
    keep: int | None
    settings: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    target: str = targets.DEFAULT
    device: catalog.Device | None = None
    positions: Literal["compact", "original"] | None = None
    out: Path | None = None
    overwrite: bool = False


def write_bundle(
    model: Vlm, request: Request, progress: Progress, verify: Callable[[Path], None] | None
) -> Path:
    """Export a model.

    Args:
        model: a loaded checkpoint.
        request: what to export.
        progress: told of each step.
        verify: called on the finished folder before it gets its name; what it raises undoes the export.

    Returns:
        The bundle's folder.

    Raises:
        ConfigError: the request does not fit the model or the target; nothing was written.
        ExportError: a graph could not be exported, or broke a rule.
    """
    target = targets.get(request.target)
    if request.precision not in target.precisions:
        raise ConfigError(
            f"precision {request.precision!r} is not offered for target {target.name}",
            mend=f"--precision one of: {', '.join(target.precisions)}",
        )
    plan = model.plan(request.method, request.keep, request.settings)
    _require_clip(model, plan)
    if request.positions == "compact" and plan.handed_over > plan.keep:
        raise ConfigError(
            f"--positions compact with --method {plan.method}, which removes tokens inside the decoder: "
            "those left keep the ids that they had",
            mend="drop --positions",
        )
    method = plan.method.replace("@", "").replace(",", "+")
    bundle = request.out or Path("engines") / f"{request.name}-{method}-k{plan.keep}-{request.precision}"
    texts = model.files()
    needed = weights.total_bytes(model.shapes, DTYPES[request.precision].itemsize)
    catalog.require_memory(request.device, needed)
    files.require_space(bundle, needed)

    with files.written_whole(bundle, overwrite=request.overwrite) as folder:
        (folder / "onnx").mkdir()
        warned: set[str] = set()
        graphs: dict[str, manifest.Graph] = {}
        for job in graph_jobs(model, plan, request.precision, target.opset):
            progress.stage(f"trace {job.name}")
            graph = job.trace()
            graph.ir_version = target.ir_version
            weights.bind(graph, model.checkpoint, warned.add)
            with weights.own_errors():
                trace.simplify(graph)
                if job.shares:
                    weights.share(graph, folder / job.shares)
                progress.stage(f"write {job.name}", weights.nbytes(graph))
                weights.save(graph, folder / job.file, progress.advance)
            graphs[job.name] = _describe(job, graph)
            progress.stage(f"check {job.name}")
            checks.check_graph(folder / job.file, target, static=job.static)
        for text in sorted(warned):
            progress.warn(text)
        _write_texts(texts, folder)
        if model.clip is not None:
            (folder / manifest.CLIP_TOKENIZER).write_text(model.clip.tokenizer, encoding="utf-8")
        progress.stage("hash")
        _manifest(model, request, plan, bundle.name, graphs, target, folder).save(folder)
        if verify is not None:
            verify(folder)
    return bundle


def _require_clip(model: Vlm, plan: Plan) -> None:
    """Refuse a plan that reads the text in CLIP's space without a CLIP model, and a CLIP model that nothing reads."""
    if plan.reads("clip_text") and model.clip is None:
        raise ConfigError(
            f"--method {plan.method} compares the picture with the prompt in CLIP's space, and no CLIP model was named",
            mend=f"--clip-text MODEL, the CLIP model that the vision tower comes from: {', '.join(clip_text.ALIASES)}, "
            "a hub id or a folder",
        )
    if model.clip is not None and not plan.reads("clip_text"):
        raise ConfigError(
            f"--clip-text, and nothing of --method {plan.method} with {plan.keep} of {plan.visual_tokens} tokens reads it",
            mend="drop --clip-text",
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
        file=job.file, inputs=[*map(spec, graph.inputs)], outputs=[*map(spec, graph.outputs)]
    )


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


def _manifest(
    model: Vlm,
    request: Request,
    plan: Plan,
    name: str,
    graphs: dict[str, manifest.Graph],
    target: targets.Target,
    folder: Path,
) -> manifest.Manifest:
    config = model.decoder_config
    return manifest.Manifest(
        name=name,
        model=manifest.Model(
            model_type=model.model_type,
            source=request.source,
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
        reduction=manifest.Reduction(
            method=plan.method,
            options=plan.settings,
            steps=[
                manifest.Step(
                    method=step.method,
                    site=step.reducer.site.value,
                    before=step.before,
                    keep=step.keep,
                    schedule=step.schedule,
                )
                for step in plan.steps
            ],
            visual_tokens=plan.visual_tokens,
            handed_over=plan.handed_over,
            keep=plan.keep,
            cached=plan.cached(config.layers),
            grid=model.grid,
            kept_aside=plan.visual_tokens - model.grid[0] * model.grid[1],
            positions=request.positions or plan.positions,
        ),
        decoder=manifest.Decoder(
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            context=config.context,
        ),
        tokens=model.tokens,
        image_size=model.image_size,
        precision=request.precision,
        target=target.name,
        device=request.device and request.device.name,
        opset=target.opset,
        ir_version=target.ir_version,
        graphs=graphs,
        tools={"python": platform.python_version(), **{tool: version(tool) for tool in _TOOLS}},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files=files.describe(folder),
    )
