"""The three graphs of a bundle, in the names and layouts that onnx-community bundles use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
import torch

from fico_export.exporter.trace import Signature, graph_from_module, name_axes, weightless
from fico_export.models.parts.family import Vlm
from fico_export.reducers.base.plan import Plan

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
SUFFIXES = {"fp32": "", "fp16": "_fp16"}


@dataclass(frozen=True)
class GraphJob:
    """A graph to export: `trace` makes it, without weights; `static` promises that no dimension of it is free."""

    name: str
    file: str
    trace: Callable[[], ir.Model]
    static: bool


def graph_jobs(model: Vlm, plan: Plan, precision: str, opset: int) -> list[GraphJob]:
    """The vision, embedding and decoder graphs."""
    dtype = DTYPES[precision]

    def job(name: str, trace: Callable[[], ir.Model], *, static: bool) -> GraphJob:
        return GraphJob(name, f"onnx/{name}{SUFFIXES[precision]}.onnx", trace, static)

    return [
        job("vision_encoder", lambda: trace_vision(model, plan, dtype, opset), static=True),
        job("embed_tokens", lambda: trace_embed(model, dtype, opset), static=False),
        job("decoder_model_merged", lambda: trace_decoder(model, dtype, opset), static=False),
    ]


def trace_vision(model: Vlm, plan: Plan, dtype: torch.dtype, opset: int) -> ir.Model:
    """pixel_values [1, 3, S, S] float32 → image_features [1, K, D], keep_index [1, K] int64; nothing free."""
    module = weightless(lambda: model.vision(plan, dtype))
    pixels = torch.zeros(1, 3, model.image_size, model.image_size)
    signature = Signature(["pixel_values"], (pixels,), None, ["image_features", "keep_index"])
    return graph_from_module(module, signature, opset)


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
    config = model.decoder_config
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
    past_axes = {0: "batch_size", 2: "past_sequence_length"}
    present_axes = {0: "batch_size", 2: "total_sequence_length"}
    caches = 2 * config.layers
    pairs = [(i, part) for i in range(config.layers) for part in ("key", "value")]
    signature = Signature(
        inputs=[
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            *(f"past_key_values.{i}.{p}" for i, p in pairs),
        ],
        examples=examples,
        axes=(sequence, total, sequence, [past_axes] * caches),
        outputs=["logits", *(f"present.{i}.{p}" for i, p in pairs)],
    )
    graph = graph_from_module(weightless(lambda: model.decoder(dtype)), signature, opset)
    name_axes(graph.graph.inputs, [sequence, total, sequence, *[past_axes] * caches])
    name_axes(graph.graph.outputs, [sequence, *[present_axes] * caches])
    return graph
