"""AWQ: channels that carry large activations are scaled up before their weights are rounded, and down before they are read.

Source: Lin et al., arXiv 2306.00978. A channel's factor is its mean magnitude over the calibration tokens to a power α; α is
searched per group of linears that read one input, by the error of their outputs. Factors are folded into what makes the
input: a norm's weight, or the rows of v_proj and up_proj. Weights are read layer by layer, so memory is one layer's. Written
here because no kept library goes with these versions: llm-compressor pins transformers ≤ 5.17 and ModelOpt's exporter
onnx 1.21, and AutoAWQ is archived.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fico_export.bundle.manifest import AWQ_FILE, Quantization
from fico_export.exporter.rounding import quantize
from fico_export.exporter.stream import Streamed, Tokens
from fico_export.exporter.views import View
from fico_export.models.decoders.base import DecoderConfig, DecoderLayer
from fico_export.models.weights import Weights
from fico_export.progress import Progress

Factors = Mapping[str, npt.NDArray[np.float32]]

ALPHAS = tuple(i / 10 for i in range(11))
# The error is estimated on so many rows of a group's weights and tokens of its input, evenly spaced.
_ROWS = 1024
_TOKENS = 512
_LAYER = re.compile(r"(language_model\.layers\.\d+)\.(?:\w+\.)?(\w+)\.weight")


class Group(NamedTuple):
    """Linears that read one input: `source` makes it and is divided by the factors, `readers` are multiplied."""

    source: str
    readers: tuple[str, ...]


GROUPS = (
    Group("input_layernorm", ("q_proj", "k_proj", "v_proj")),
    Group("v_proj", ("o_proj",)),
    Group("post_attention_layernorm", ("gate_proj", "up_proj")),
    Group("up_proj", ("down_proj",)),
)


def foldable(group: Group, config: DecoderConfig) -> bool:
    """Whether factors can be folded into a group's source: not where heads share values, nor through a bias."""
    if group.source == "v_proj":
        return config.heads == config.kv_heads and not config.qkv_bias
    return group.source != "up_proj" or not config.mlp_bias


def search(
    checkpoint: Weights,
    config: DecoderConfig,
    prompts: Sequence[Tokens],
    record: Quantization,
    progress: Progress,
) -> dict[str, npt.NDArray[np.float32]]:
    """Factors [K] by the canonical name of the layer and the source they are folded into.

    Args:
        checkpoint: the weights.
        config: of the decoder.
        prompts: the calibration set; at least one.
        record: how weights are rounded.
        progress: told of each layer.
    """
    streamed = Streamed(checkpoint, config, prompts)
    progress.stage("calibrate", streamed.layer_bytes * config.layers)
    factors = {}
    for i in range(config.layers):
        layer = streamed.layer(i)
        linears = {
            name.rpartition(".")[2]: m for name, m in layer.named_modules() if isinstance(m, nn.Linear)
        }
        inputs = _inputs(streamed, layer, [linears[group.readers[0]] for group in GROUPS])
        for group, x in zip(GROUPS, inputs, strict=True):
            if foldable(group, config):
                weight = torch.cat([linears[name].weight for name in group.readers])
                found = _factors(_spaced(x, _TOKENS), _spaced(weight, _ROWS), x.abs().mean(0), record)
                factors[f"language_model.layers.{i}.{group.source}"] = found.numpy()
        progress.advance(streamed.layer_bytes)
    return factors


def folded(checkpoint: Weights, factors: Factors) -> View:
    """The checkpoint with the factors folded in, which computes the same; the tensors they touch come back in FP32."""
    reads = {name: group.source for group in GROUPS for name in group.readers}

    def change(name: str, tensor: Tensor) -> Tensor:
        if (match := _LAYER.fullmatch(name)) is None:
            return tensor
        layer, part = match.groups()
        if (factor := factors.get(f"{layer}.{part}")) is not None:
            rows = torch.from_numpy(factor)
            tensor = tensor.to(torch.float32) / (rows[:, None] if tensor.dim() == 2 else rows)
        if part in reads and (factor := factors.get(f"{layer}.{reads[part]}")) is not None:
            tensor = tensor.to(torch.float32) * torch.from_numpy(factor)
        return tensor

    return View(checkpoint, change)


def save(factors: Factors, folder: Path) -> None:
    """Write them beside the graphs: `verify` cannot compute them again without the calibration set."""
    np.savez(folder / AWQ_FILE, allow_pickle=False, **factors)


def load(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read what `save` wrote."""
    with np.load(folder / AWQ_FILE, allow_pickle=False) as stored:
        return dict(stored)


def _inputs(streamed: Streamed, layer: DecoderLayer, readers: Sequence[nn.Linear]) -> list[Tensor]:
    """Run a layer, and hand out what each of the linears read: [tokens of all sequences, K]."""
    seen: list[list[Tensor]] = [[] for _ in readers]
    hooks = [
        linear.register_forward_pre_hook(lambda _, given, to=to: to.append(given[0][0]))
        for linear, to in zip(readers, seen, strict=True)
    ]
    streamed.run(layer)
    for hook in hooks:
        hook.remove()
    return [torch.cat(rows) for rows in seen]


def _factors(x: Tensor, weight: Tensor, magnitude: Tensor, record: Quantization) -> Tensor:
    """Of those of all α, the factors [K] with the least error of weight [n, K] on inputs x [T, K]."""
    least, best = float("inf"), torch.ones_like(magnitude)
    for alpha in ALPHAS:
        raw = magnitude.clamp(min=1e-4).pow(alpha)
        factor = raw / (raw.max() * raw.min()).sqrt()  # their order of magnitude stays 1
        blocks = quantize(weight * factor, record.bits, record.block, signed=record.signed_scales)
        error = ((blocks.dequantized(weight.shape[1]) / factor - weight) @ x.T).square().sum().item()
        if error < least:
            least, best = error, factor
    return best


def _spaced(rows: Tensor, most: int) -> Tensor:
    """At most so many rows [R, K], evenly spaced."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).round().long()]
