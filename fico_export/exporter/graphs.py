"""The graphs of a bundle, in the names and layouts that onnx-community bundles use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir
import torch

from fico_export.bundle.manifest import Quantization
from fico_export.devices.targets import Target
from fico_export.exporter.repeat import TRACED, repeat_layers
from fico_export.exporter.trace import (
    Signature,
    drop_unread_outputs,
    graph_from_module,
    name_axes,
    weightless,
)
from fico_export.models.parts.clip_text import Clip
from fico_export.models.parts.decoder import Decoder, DecoderConfig
from fico_export.models.parts.family import Vlm
from fico_export.models.parts.fused import FusedDecoder
from fico_export.models.parts.prefill import Prefill, WithPast
from fico_export.models.parts.static import DIALECTS, StaticDecoder
from fico_export.reducers.base.plan import Plan, Step
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
    model: Vlm,
    plan: Plan,
    precision: str,
    target: Target,
    quantization: Quantization | None = None,
    max_context: int | None = None,
) -> list[GraphJob]:
    """The vision and embedding graphs, CLIP's text tower if the plan reads it, and the decoder: one graph, or two.

    Args:
        model: a loaded checkpoint.
        plan: of the reduction.
        precision: of weights and arithmetic.
        target: whose opsets, and whose form of the decoder, the graphs have.
        quantization: of which `precision` is the name; what it leaves alone is FP16.
        max_context: rows of the decoder's cache, for a target where it is static.
    """
    floats = decoder = vision = precision
    if quantization is not None:
        floats, decoder = "fp16", "q4" if quantization.activations == "fp32" else "q4f16"
        vision = "int8" if quantization.vision_bits else floats

    def job(
        name: str,
        trace: Callable[[torch.dtype, int], ir.Model],
        kind: str,
        *,
        static: bool = False,
        shares: GraphJob | None = None,
        opset: int = target.opset,
    ) -> GraphJob:
        quantized = kind not in ("fp32", "fp16")
        return GraphJob(
            name,
            f"onnx/{name}{SUFFIXES[kind]}.onnx",
            lambda: trace(DTYPES[kind], opset),
            static,
            max(opset, quantization.opset) if quantization and quantized else opset,
            shares.file if shares else None,
            quantized,
        )

    jobs = [
        job("vision_encoder", lambda *to: trace_vision(model, plan, *to), vision, static=True),
        job("embed_tokens", lambda *to: trace_embed(model, *to), floats),
    ]
    if clip := model.clip if plan.reads("clip_text") else None:
        jobs.append(job("clip_text", lambda *to: trace_clip_text(clip, *to), floats, static=True))
    inside = plan.at(Site.DECODER_LAYER)
    whole, after, of = (
        (trace_fused_decoder if target.contrib else trace_decoder),
        trace_with_past,
        target.opset,
    )
    if target.dialect != "plain":
        assert max_context is not None
        of, kind = target.decoder_opset or of, DIALECTS[target.dialect]
        whole = partial(trace_static, kind=kind, rows=max_context)
        after = partial(trace_static, kind=kind, rows=max_context, per_layer=True)
    if inside is None:
        return [*jobs, job("decoder_model_merged", lambda *to: whole(model, *to), decoder, opset=of)]
    with_past = job("decoder_with_past", lambda *to: after(model, *to), decoder, opset=of)
    prefill = job("decoder_prefill", lambda *to: trace_prefill(model, inside, *to), decoder, shares=with_past)
    return [*jobs, with_past, prefill]


def trace_vision(model: Vlm, plan: Plan, dtype: torch.dtype, opset: int) -> ir.Model:
    """Pixels, and what a method reads of the prompt; see `models/parts/vision.py` for its tensors. Nothing is free."""
    module = weightless(lambda: model.vision(plan, dtype))
    rows = plan.text_length or 0
    text = {
        "text_embeds": torch.zeros(1, rows, model.decoder_config.hidden_size, dtype=dtype),
        "text_mask": torch.zeros(1, rows, dtype=torch.int64),
        "clip_text": torch.zeros(1, model.clip.text.projection if model.clip else 0),
    }
    pixels = torch.zeros(1, 3, model.image_size, model.image_size)
    signature = Signature(
        ["pixel_values", *module.text_inputs],
        (pixels, *(text[name] for name in module.text_inputs)),
        None,
        ["image_features", "keep_index"],
    )
    return graph_from_module(module, signature, opset)


def trace_clip_text(clip: Clip, dtype: torch.dtype, opset: int) -> ir.Model:
    """input_ids [1, 77] int64 → clip_text [1, P] float32; nothing free."""
    ids = torch.full((1, clip.text.context), 3, dtype=torch.int64)
    signature = Signature(["input_ids"], (ids,), None, ["clip_text"])
    return graph_from_module(weightless(lambda: clip.text_graph(dtype)), signature, opset)


def trace_embed(model: Vlm, dtype: torch.dtype, opset: int) -> ir.Model:
    """input_ids [B, S] int64 → inputs_embeds [B, S, C]."""
    axes = {0: "batch_size", 1: "sequence_length"}
    module = weightless(lambda: model.embed_tokens(dtype))
    signature = Signature(["input_ids"], (torch.zeros(2, 3, dtype=torch.int64),), (axes,), ["inputs_embeds"])
    graph = graph_from_module(module, signature, opset)
    name_axes(graph.graph.inputs, [axes])
    name_axes(graph.graph.outputs, [axes])
    return graph


def trace_decoder(model: Vlm, dtype: torch.dtype, opset: int) -> ir.Model:
    """Prefill and decode in one graph; see `models/parts/decoder.py` for its tensors."""
    return _trace_decoder(
        model.decoder_config, Decoder, dtype, opset, "past_sequence_length", "total_sequence_length"
    )


def trace_fused_decoder(model: Vlm, dtype: torch.dtype, opset: int) -> ir.Model:
    """The same in ONNX Runtime's operators; see `models/parts/fused.py` for its tensors.

    Past and present have one free axis, by which a runtime knows that they are one buffer.
    """
    graph = _trace_decoder(
        model.decoder_config, FusedDecoder, dtype, opset, "max_sequence_length", "max_sequence_length"
    )
    drop_unread_outputs(graph)
    return graph


def _trace_decoder(
    whole: DecoderConfig,
    kind: type[Decoder],
    dtype: torch.dtype,
    opset: int,
    past_axis: str,
    present_axis: str,
) -> ir.Model:
    config = replace(whole, layers=min(whole.layers, TRACED))
    batch, new, past = 2, 3, 5  # examples of free axes: any unequal numbers above 1
    examples = (
        torch.zeros(batch, new, config.hidden_size, dtype=dtype),
        torch.ones(batch, past + new, dtype=torch.int64),
        torch.zeros(batch, new, dtype=torch.int64),
        # A tensor of its own for each: the tracer takes one tensor given twice for one input.
        [
            torch.zeros(batch, config.kv_heads, past, config.head_dim, dtype=dtype)
            for _ in range(2 * config.layers)
        ],
    )
    sequence = {0: "batch_size", 1: "sequence_length"}
    total = {0: "batch_size", 1: "total_sequence_length"}
    past_axes = {0: "batch_size", 2: past_axis}
    present_axes = {0: "batch_size", 2: present_axis}
    caches = 2 * config.layers
    signature = Signature(
        inputs=[
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            *_caches("past_key_values", config.layers),
        ],
        examples=examples,
        axes=(sequence, total, sequence, [past_axes] * caches),
        outputs=["logits", *_caches("present", config.layers)],
    )
    graph = graph_from_module(weightless(lambda: kind(config, dtype)), signature, opset)
    name_axes(graph.graph.inputs, [sequence, total, sequence, *[past_axes] * caches])
    logits = sequence if graph.graph.outputs[0].shape[1] != 1 else {0: "batch_size"}  # type: ignore[index]
    name_axes(graph.graph.outputs, [logits, *[present_axes] * caches])
    if whole.layers > TRACED:
        repeat_layers(graph, "language_model.layers", whole.layers)
    return graph


def trace_prefill(model: Vlm, step: Step, dtype: torch.dtype, opset: int) -> ir.Model:
    """A prompt with one picture, reduced inside; see `models/parts/prefill.py` for its tensors."""
    config = model.decoder_config
    length = step.before + 5
    examples = (
        torch.zeros(1, length, config.hidden_size, dtype=dtype),
        torch.arange(length)[None],
        torch.full((1,), 2, dtype=torch.int64),
    )
    sequence = {1: "sequence_length"}
    signature = Signature(
        inputs=["inputs_embeds", "position_ids", "visual_start"],
        examples=examples,
        axes=(sequence, sequence, None),
        outputs=["logits", "keep_index", *_caches("present", config.layers)],
        least={"sequence_length": step.before + 2},
    )
    module = weightless(lambda: Prefill(config, step, model.grid, dtype))
    graph = graph_from_module(module, signature, opset)
    name_axes(graph.graph.inputs, [sequence, sequence, None])
    cached = [{2: f"total_sequence_length.{i}"} for i in range(config.layers) for _ in range(2)]
    name_axes(graph.graph.outputs, [None, None, *cached])
    return graph


def trace_with_past(model: Vlm, dtype: torch.dtype, opset: int) -> ir.Model:
    """What follows a prompt, its caches of a length of their own in every layer; see `models/parts/prefill.py`."""
    config, new = model.decoder_config, 3
    examples = (
        torch.zeros(1, new, config.hidden_size, dtype=dtype),
        torch.arange(new)[None],
        [
            torch.zeros(1, config.kv_heads, 5 + i, config.head_dim, dtype=dtype)
            for i in range(config.layers)
            for _ in range(2)
        ],
    )
    sequence = {1: "sequence_length"}
    past = [{2: f"past_sequence_length.{i}"} for i in range(config.layers) for _ in range(2)]
    present = [{2: f"total_sequence_length.{i}"} for i in range(config.layers) for _ in range(2)]
    signature = Signature(
        inputs=["inputs_embeds", "position_ids", *_caches("past_key_values", config.layers)],
        examples=examples,
        axes=(sequence, sequence, past),
        outputs=["logits", *_caches("present", config.layers)],
    )
    graph = graph_from_module(weightless(lambda: WithPast(config, dtype)), signature, opset)
    name_axes(graph.graph.inputs, [sequence, sequence, *past])
    name_axes(graph.graph.outputs, [sequence, *present])
    return graph


def trace_static(
    model: Vlm,
    dtype: torch.dtype,
    opset: int,
    *,
    kind: type[StaticDecoder],
    rows: int,
    per_layer: bool = False,
) -> ir.Model:
    """Prefill and decode on a cache of `rows` rows; see `models/parts/static.py` for its tensors.

    Args:
        model: a loaded checkpoint.
        dtype: of weights and arithmetic.
        opset: of the graph.
        kind: the dialect's module.
        rows: of the cache.
        per_layer: whether each layer has a length of its own, as after a prompt that was reduced inside.
    """
    whole, new = model.decoder_config, 3
    # A layer that has a length of its own is not like the others, and cannot be copied for them.
    config = whole if per_layer else replace(whole, layers=min(whole.layers, TRACED))
    caches = 2 * config.layers
    sequence = {1: "sequence_length"}
    signature = Signature(
        inputs=[
            "inputs_embeds",
            "position_ids",
            "past_lengths",
            *_caches("past_key_values", config.layers),
        ],
        examples=(
            torch.zeros(1, new, config.hidden_size, dtype=dtype),
            torch.arange(new)[None],
            torch.full((config.layers if per_layer else 1,), 2, dtype=torch.int64),
            [torch.zeros(1, config.kv_heads, rows, config.head_dim, dtype=dtype) for _ in range(caches)],
        ),
        axes=(sequence, sequence, None, [None] * caches),
        outputs=["logits", *_caches("present", config.layers)],
    )
    graph = graph_from_module(weightless(lambda: kind(config, dtype)), signature, opset)
    name_axes(graph.graph.inputs, [sequence, sequence, None, *[None] * caches])
    in_place = graph.graph.outputs[1].shape == graph.graph.inputs[3].shape
    present = None if in_place else {2: "sequence_length"}
    name_axes(graph.graph.outputs, [None, *[present] * caches])
    if whole.layers > config.layers:
        repeat_layers(graph, "language_model.layers", whole.layers)
    return graph


def _caches(name: str, layers: int) -> list[str]:
    return [f"{name}.{i}.{part}" for i in range(layers) for part in ("key", "value")]
