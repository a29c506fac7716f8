"""The graphs of a bundle, in the names and layouts that onnx-community bundles use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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

    def job(
        name: str,
        make: Callable[[torch.dtype], GraphModule],
        kind: str,
        *,
        static: bool = False,
        shares: GraphJob | None = None,
        opset: int = target.opset,
        layers: int | None = None,
    ) -> GraphJob:
        quantized = kind not in ("fp32", "fp16")
        return GraphJob(
            name,
            f"onnx/{name}{SUFFIXES[kind]}.onnx",
            lambda: traced(lambda: make(DTYPES[kind]), opset, layers),
            static,
            max(opset, quantization.opset) if quantization and quantized else opset,
            shares.file if shares else None,
            quantized,
        )

    def of_images(profile: Profile, shares: GraphJob | None = None) -> GraphJob:
        planned = model.plan_for(plan, profile)
        return job(
            profile.graph,
            lambda dtype: model.vision(planned, dtype, profile),
            vision,
            static=True,
            shares=shares,
        )

    first = of_images(model.profile)
    jobs = [first, *(of_images(profile, first) for profile in model.profiles[1:])]
    jobs.append(job(graph_names.EMBEDDING, model.embed_tokens, floats))
    if clip := model.clip if plan.reads("clip_text") else None:
        jobs.append(job(graph_names.CLIP_TEXT, clip.text_graph, floats, static=True))
    config, inside = model.decoder_config, plan.at(Site.DECODER_LAYER)
    form, opset = (
        decoders.form(target.decoder, per_layer=inside is not None),
        target.decoder_opset or target.opset,
    )
    if inside is None:
        # Layers are alike after those that an input is added to.
        alike = config.planes == 0
        few = replace(config, layers=min(config.layers, TRACED) if alike else config.layers)
        return [
            *jobs,
            job(
                graph_names.DECODER,
                lambda dtype: form.module(few, dtype, max_context, False, max_batch),
                decoder,
                opset=opset,
                layers=config.layers if alike else None,
            ),
        ]
    with_past = job(
        graph_names.WITH_PAST,
        lambda dtype: form.module(config, dtype, max_context, True, 1),
        decoder,
        opset=opset,
    )
    prefill = job(
        graph_names.PREFILL,
        lambda dtype: Prefill(config, inside, model.profile.token_grid, dtype),
        decoder,
        shares=with_past,
    )
    return [*jobs, with_past, prefill]


def _kinds(precision: str, quantization: Quantization | None) -> tuple[str, str, str]:
    """What the weights of the vision graph are, those of graphs that are never quantized, and those of the decoder."""
    if quantization is None:
        return precision, precision, precision
    decoder = "q4" if quantization.activations == "fp32" else "q4f16"
    return "int8" if quantization.vision_bits else "fp16", "fp16", decoder


def traced(make: Callable[[], GraphModule], opset: int, layers: int | None = None) -> ir.Model:
    """The graph of the module that `make` builds, without weights.

    Args:
        make: builds the module; of a decoder of `layers` equal layers, one with `TRACED` of them at most.
        opset: of the graph.
        layers: of the decoder; None for what was built is all.
    """
    graph = trace(make, opset)
    if layers is not None and layers > TRACED:
        repeat_layers(graph, "language_model.layers", layers)
    return graph
