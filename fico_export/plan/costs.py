"""Operations and bytes of the graphs that a request would become, counted on their modules; no weight is read.

FLOPs are two for each multiply-add of matrix products and convolutions, reducers included: torch counts them while the modules
run on the meta device, which computes shapes and no numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fico_export.bundle import graph_names
from fico_export.bundle.manifest import Quantization
from fico_export.errors import ConfigError
from fico_export.exporter.context import bytes_per_row
from fico_export.exporter.graphs import DTYPES
from fico_export.exporter.quantize import bits_of
from fico_export.models.decoders.base import Decoder, DecoderConfig
from fico_export.models.decoders.plain import PlainDecoder
from fico_export.models.decoders.reducing import Prefill
from fico_export.models.source import Architecture
from fico_export.reducers.base.plan import ReductionPlan
from fico_export.reducers.base.reducer import Site

Flops = dict[str, int]  # part of a graph → its share
_PROJECTOR = re.compile(r"multi_modal_projector(\.deepstack_merger_list\.\d+)?")


@dataclass(frozen=True)
class Storage:
    """How weights are stored and computed with: a name of `precision`, and for int4 how it is packed."""

    precision: str
    quantization: Quantization | None = None

    @property
    def floats(self) -> torch.dtype:
        """Of the vision and embedding graphs."""
        return DTYPES["fp16" if self.quantization else self.precision]

    @property
    def decoder(self) -> torch.dtype:
        """Of the decoder's activations and cache."""
        widened = self.quantization is not None and self.quantization.activations == "fp32"
        return torch.float32 if widened else self.floats


def vision_flops(model: Architecture, plan: ReductionPlan) -> Flops:
    """One image: `embedding` of patches, `tower`, `reducer`, `projector`.

    Raises:
        ConfigError: a method compares in CLIP's space, whose width another model's config has.
    """
    _require_known(plan)
    with torch.device("meta"):
        module = model.vision(plan, torch.float16)
        rows = plan.text_length or 0
        tokens = model.profile.visual_tokens // model.profile.tiles
        extra = {
            graph_names.VALID: torch.zeros(model.profile.input_shape[0], tokens, dtype=torch.int64),
            "text_embeds": torch.zeros(1, rows, model.decoder_config.hidden_size, dtype=torch.float16),
            "text_mask": torch.zeros(1, rows, dtype=torch.int64),
        }
        pixels = torch.zeros(model.profile.input_shape)
        counted = _count(module, pixels, *(extra[name] for name in module.extra_inputs))
    parts = {
        "embedding": counted.get("vision_tower.embeddings", 0),
        "reducer": sum(
            n for name, n in counted.items() if name.startswith("reduce.") and name.count(".") == 1
        ),
        # Mergers of planes run beside the projector, not in it.
        "projector": sum(n for name, n in counted.items() if _PROJECTOR.fullmatch(name)),
    }
    parts["tower"] = counted[""] - sum(parts.values())
    return {part: model.profile.runs * count for part, count in parts.items()}


def prefill_flops(model: Architecture, plan: ReductionPlan, text_tokens: int) -> Flops:
    """A prompt of one image and `text_tokens` others: `layers`, `reducer`, `head`.

    The head is of every row, and of the last one alone where the decoder reduces.
    """
    config, step = model.decoder_config, plan.at(Site.DECODER_LAYER)
    length = plan.handed_over + text_tokens
    if step is None:
        return decoder_flops(config, length)
    with torch.device("meta"):
        module = Prefill(config, step, torch.float16)
        counted = _count(
            module,
            torch.zeros(1, length, config.hidden_size, dtype=torch.float16),
            torch.zeros(config.position_axes(1, length), dtype=torch.int64),
            torch.zeros(1, step.before, dtype=torch.int64),
        )
    reducer = sum(n for name, n in counted.items() if name.startswith("reduce.") and name.count(".") == 1)
    head = counted["lm_head"]
    return {"layers": counted[""] - reducer - head, "reducer": reducer, "head": head}


def decoder_flops(config: DecoderConfig, new: int, past: int = 0) -> Flops:
    """`new` tokens after `past` ones: `layers`, and the `head` of every new row."""
    one, two = (_decoder_flops(replace(config, layers=n), new, past) for n in (1, 2))
    head = one["lm_head"]
    layer = two[""] - one[""]  # all are alike
    return {"layers": one[""] - head + (config.layers - 1) * layer, "head": head}


def vision_weights(model: Architecture, plan: ReductionPlan, storage: Storage) -> int:
    """Bytes."""
    with torch.device("meta"):
        return weight_bytes(model.vision(plan, storage.floats), storage.quantization)


def decoder_weights(config: DecoderConfig, storage: Storage) -> tuple[int, int]:
    """Bytes of the decoder without its head, and of lm_head."""
    with torch.device("meta"):
        one, two = (Decoder(replace(config, layers=n), storage.decoder) for n in (1, 2))
    head = weight_bytes(one.lm_head, storage.quantization, "lm_head.")
    first, second = (weight_bytes(module, storage.quantization) for module in (one, two))
    return first - head + (config.layers - 1) * (
        second - first
    ), head  # all layers are alike, and share zero points


def embedding_weights(model: Architecture, storage: Storage) -> int:
    """Bytes of the embedding table, which lies in a file and is read row by row."""
    with torch.device("meta"):
        return weight_bytes(model.embed_tokens(storage.floats), None)


def weight_bytes(module: nn.Module, quantization: Quantization | None, prefix: str = "") -> int:
    """Bytes of a module's parameters as a graph stores them; `prefix` goes before their names."""
    total, zeros = 0, {}
    for name, parameter in module.named_parameters(prefix=prefix.rstrip(".")):
        bits = bits_of(name, quantization) if quantization else None
        if bits is None or quantization is None:
            total += parameter.numel() * parameter.element_size()
            continue
        outputs, inputs = parameter.shape
        blocks = math.ceil(inputs / quantization.block)
        packed = quantization.form == "matmul_nbits"  # fills up the last block, and needs no zero points
        rows = blocks * quantization.block if packed else inputs
        scale = 4 if quantization.activations == "fp32" else 2
        total += outputs * rows * bits // 8 + blocks * outputs * scale
        if not packed:
            zeros[bits, blocks, outputs] = blocks * outputs * bits // 8  # matrices of one shape share theirs
    return total + sum(zeros.values())


def cache_bytes_per_row(config: DecoderConfig, storage: Storage) -> int:
    """Of keys and values, in all layers."""
    return bytes_per_row(config, storage.decoder.itemsize)


def vision_activations(model: Architecture, plan: ReductionPlan, storage: Storage) -> tuple[int, int]:
    """Bytes at the peak: where attention is one kernel, and where its scores are written out."""
    with torch.device("meta"):
        tower = model.vision(plan, storage.floats).vision_tower
    config, tiles, (down, across) = tower.config, model.profile.input_shape[0], model.profile.patch_grid
    rows, size = across * down + tower.cls_tokens, storage.floats.itemsize
    # In FP32, and cast for the product with the values.
    scores = tiles * config.heads * rows * rows * (4 + size)
    return _peak(tiles * rows, config.hidden_size, 2 * config.intermediate_size, scores, size)


def prefill_activations(
    config: DecoderConfig, rows: int, columns: int, head_rows: int, storage: Storage
) -> tuple[int, int]:
    """The same of `rows` tokens that attend to `columns`, with logits of `head_rows`."""
    size = storage.decoder.itemsize
    scores = config.heads * rows * columns * (4 + size)
    low, high = _peak(rows, config.hidden_size, 3 * config.intermediate_size, scores, size)
    logits = head_rows * config.vocab_size * (4 + size)
    return max(low, logits), max(high, logits)


def _peak(rows: int, channels: int, hidden: int, scores: int, size: int) -> tuple[int, int]:
    residual = 2 * rows * channels * size
    mlp, qkv = rows * hidden * size, 3 * rows * channels * size
    return residual + max(mlp, qkv), residual + max(mlp, qkv + scores)


@cache  # every device asks for the same
def _decoder_flops(config: DecoderConfig, new: int, past: int) -> Mapping[str, int]:
    with torch.device("meta"):
        module = PlainDecoder(config, torch.float16)
        cache = [
            torch.zeros(1, config.kv_heads, past, config.head_dim, dtype=torch.float16)
            for _ in range(2 * config.layers)
        ]
        hidden = torch.zeros(1, new, config.hidden_size, dtype=torch.float16)
        mask = torch.ones(1, past + new)
        positions = torch.zeros(config.position_axes(1, new), dtype=torch.int64)
        return _count(module, hidden, mask, positions, cache)


def _count(module: nn.Module, *inputs: Tensor | list[Tensor]) -> dict[str, int]:
    """FLOPs of each submodule by its name, and of all by the empty one."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(*inputs)
    counts: dict[str, dict[Any, int]] = counter.get_flop_counts()
    root = type(module).__name__
    found = {
        name.removeprefix(f"{root}."): sum(by.values()) for name, by in counts.items() if name != "Global"
    }
    return found | {"": counter.get_total_flops()}


def _require_known(plan: ReductionPlan) -> None:
    if plan.reads("clip_text"):
        raise ConfigError(
            f"--method {plan.method} compares in the space of a CLIP model, which config.json does not describe",
            fix="plan with another method that keeps as many tokens, such as divprune: the tower and decoder cost the same",
        )
