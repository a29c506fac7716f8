"""The graphs of a bundle, in the names and layouts that onnx-community bundles use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import onnx_ir as ir
import torch

from fico_export.bundle import graph_names
from fico_export.bundle.manifest import Quantization
from fico_export.bundle.profiles import Profile
from fico_export.devices.targets import Target
from fico_export.exporter.repeat import TRACED, repeat_layers
from fico_export.exporter.trace import trace
from fico_export.models import decoders
from fico_export.models.decoders.reducing import Prefill
from fico_export.models.ports import GraphModule
from fico_export.models.source import SourceModel
from fico_export.reducers.base.plan import ReductionPlan
from fico_export.reducers.base.reducer import Site

# By what a graph's weights are: of INT4 ones q4 computes in FP32, q4f16 in FP16.
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "q4": torch.float32,
    "q4f16": torch.float16,
    "int8": torch.float16,
}
SUFFIXES = {"fp32": "", "fp16": "_fp16", "q4": "_q4", "q4f16": "_q4f16", "int8": "_int8"}


@dataclass(frozen=True)
class GraphJob:
    """A graph to export.

    Attributes:
        name: in the manifest.
        file: in the bundle.
        trace: makes it, without weights.
        static: promises that no dimension of it is free.
        shares: file of an earlier graph with the same weights, which need not be stored twice.
        quantized: whether weights of it are.
        opset: that it is to have in the end.
    """

    name: str
    file: str
    trace: Callable[[], ir.Model]
    static: bool
    opset: int
    shares: str | None = None
    quantized: bool = False


def graph_jobs(
    model: SourceModel,
    plan: ReductionPlan,
    precision: str,
    target: Target,
    quantization: Quantization | None = None,
    max_context: int | None = None,
    max_batch: int = 1,
) -> list[GraphJob]:
    """The vision graph of each profile, the embedding, CLIP's text tower if the plan reads it, and the decoder: one graph, or two.

    Args:
        model: a loaded checkpoint.
        plan: of the reduction, for images of the first profile.
        precision: of weights and arithmetic.
        target: whose opsets, and whose form of the decoder, the graphs have.
        quantization: of which `precision` is the name; what it leaves alone is FP16.
        max_context: rows of the decoder's cache, for a target where it is static.
        max_batch: sequences that such a decoder runs together; others have a free axis for them.
    """
    vision, floats, decoder = _kinds(precision, quantization)
    maker = _Maker(target, quantization)
    of_graphs = {profile.graph: profile for profile in reversed(model.profiles)}  # several may share one
    first, *others = [
        _vision(model, model.plan_for(plan, profile), profile, maker, vision)
        for profile in reversed(of_graphs.values())
    ]
    jobs = [first, *(replace(other, shares=first.file) for other in others)]
    jobs.append(maker.job(graph_names.EMBEDDING, model.embed_tokens, floats))
    if clip := model.clip if plan.reads("clip_text") else None:
        jobs.append(maker.job(graph_names.CLIP_TEXT, clip.text_graph, floats, static=True))
    return [*jobs, *_decoders(model, plan, maker, decoder, (max_context, max_batch))]


def _vision(model: SourceModel, plan: ReductionPlan, profile: Profile, maker: _Maker, kind: str) -> GraphJob:
    """The vision graph of a profile; of a tower of equal layers a few are traced, if none of them reduces or is looked at."""
    equal, few = model.equal_layers, None
    apart = plan.at(Site.ENCODER_LAYER) or any(step.earlier_layer is not None for step in plan.steps)
    if equal is not None and not apart and min((equal.count, *equal.readers.values())) >= TRACED - 1:
        few = Repeated("vision_tower.encoder.layers", TRACED, equal.count, equal.readers)
    make = partial(model.vision, plan, profile=profile, layers=few.traced if few else None)
    return maker.job(profile.graph, make, kind, static=True, layers=few)


def _decoders(
    model: SourceModel, plan: ReductionPlan, maker: _Maker, kind: str, sizes: tuple[int | None, int]
) -> list[GraphJob]:
    """The decoder, or its two graphs where it reduces; `sizes` are the rows of its cache and its batch."""
    config, inside, target = model.decoder_config, plan.at(Site.DECODER_LAYER), maker.target
    form = decoders.form(target.decoder, per_layer=inside is not None)
    opset, (rows, batch) = target.decoder_opset or target.opset, sizes
    if inside is None:
        # Layers are alike but for the first, after which something is added.
        few = replace(config, layers=min(config.layers, config.planes + TRACED))
        return [
            maker.job(
                graph_names.DECODER,
                lambda dtype: form.module(few, dtype, rows, False, batch),
                kind,
                opset=opset,
                layers=Repeated("language_model.layers", few.layers, config.layers),
            )
        ]
    with_past = maker.job(
        graph_names.WITH_PAST, lambda dtype: form.module(config, dtype, rows, True, batch), kind, opset=opset
    )
    prefill = maker.job(graph_names.PREFILL, lambda dtype: Prefill(config, inside, dtype), kind)
    return [with_past, replace(prefill, shares=with_past.file)]


@dataclass(frozen=True)
class Repeated:
    """Layers of which a few are traced; arguments as of `repeat_layers`."""

    stem: str
    traced: int
    count: int
    readers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Maker:
    """Makes the jobs of one export."""

    target: Target
    quantization: Quantization | None

    def job(
        self,
        name: str,
        make: Callable[[torch.dtype], GraphModule],
        kind: str,
        *,
        static: bool = False,
        opset: int | None = None,
        layers: Repeated | None = None,
    ) -> GraphJob:
        """A graph whose weights are of a kind, as `SUFFIXES` names them; `layers` as of `traced`."""
        quantized, traced_for = kind not in ("fp32", "fp16"), opset or self.target.opset
        return GraphJob(
            name,
            f"onnx/{name}{SUFFIXES[kind]}.onnx",
            lambda: traced(lambda: make(DTYPES[kind]), traced_for, layers),
            static,
            max(traced_for, self.quantization.opset) if self.quantization and quantized else traced_for,
            quantized=quantized,
        )


def _kinds(precision: str, quantization: Quantization | None) -> tuple[str, str, str]:
    """What the weights of the vision graph are, those of graphs that are never quantized, and those of the decoder."""
    if quantization is None:
        return precision, precision, precision
    decoder = "q4" if quantization.activations == "fp32" else "q4f16"
    return "int8" if quantization.vision_bits else "fp16", "fp16", decoder


def traced(make: Callable[[], GraphModule], opset: int, layers: Repeated | None = None) -> ir.Model:
    """The graph of the module that `make` builds, without weights.

    Args:
        make: builds the module.
        opset: of the graph.
        layers: how few of its layers the module has; None for all.
    """
    graph = trace(make, opset)
    if layers is not None and layers.count > layers.traced:
        repeat_layers(graph, layers.stem, layers.count, layers.traced, layers.readers)
    return graph
