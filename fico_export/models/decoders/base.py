"""What every decoder form is made of: Llama-shaped layers (Llama, Vicuna, Mistral, Qwen2), and the record of a form.

Parameters have the checkpoints' names. A form is one file of this folder: a module that runs the layers on a KV cache, and a
`FORM` that says how the cache is kept.

Letters: B batch, S new tokens, P past tokens, C channels, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from fico_export.bundle import graph_names
from fico_export.models.activations import ACTIVATIONS
from fico_export.models.layers import RmsNorm, attend, join_heads, split_heads
from fico_export.models.ports import GraphModule, Port, Ports

AxisT = TypeVar("AxisT", int, int | str)
EMBEDDINGS = "language_model.embed_tokens.weight"  # of a checkpoint, by its canonical name


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder.

    `inv_freq` are the rotary frequencies [D/2], `rope_scale` multiplies cos and sin, and `rope_axes` [D/2] says which axis of
    the position ids each frequency turns by; none where there is one axis. With `qk_norm`, queries and keys of each head are
    normed before they turn. After each of the first `planes` layers, an input of its own is added to the hidden states.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    activation: str
    norm_eps: float
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    inv_freq: tuple[float, ...]
    rope_scale: float = 1.0
    rope_axes: tuple[int, ...] = ()
    qk_norm: bool = False
    planes: int = 0

    @property
    def axes(self) -> int:
        """A, of the position ids."""
        return max(self.rope_axes, default=0) + 1

    def position_axes(self, batch: AxisT, new: AxisT) -> tuple[int | AxisT, ...]:
        """Axes of the position ids of `new` tokens: one axis of them has none of its own."""
        return (batch, new) if self.axes == 1 else (self.axes, batch, new)


class DecoderAttention(nn.Module):
    """Causal self-attention; a group of query heads shares each key-value head without repeating it."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        size, kv_size = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, size, bias=config.qkv_bias, dtype=dtype)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias, dtype=dtype)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.qkv_bias, dtype=dtype)
        self.o_proj = nn.Linear(size, config.hidden_size, bias=config.out_bias, dtype=dtype)
        if config.qk_norm:
            self.q_norm, self.k_norm = (RmsNorm(config.head_dim, config.norm_eps) for _ in range(2))
        self.qk_norm = config.qk_norm

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, allowed: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """[B, S, C] → [B, S, C], keys and values [B, kv heads, P + S, D] with the past, queries [B, heads, S, D]."""
        queries, keys = self.rotated(x, cos, sin)
        values = split_heads(self.v_proj(x), self.kv_heads)
        keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        # [B, kv heads, group, S, D] against [B, kv heads, 1, T, D]
        grouped = queries.unflatten(1, (self.kv_heads, -1))
        attended = attend(grouped, keys[:, :, None], values[:, :, None], allowed).flatten(1, 2)
        return self.o_proj(join_heads(attended)), (keys, values), queries

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, C] → queries [B, heads, S, D] and keys [B, kv heads, S, D] with their positions in them."""
        queries = rotate(self.queries(x), cos, sin)
        return queries, rotate(self.keys(x), cos, sin)

    def queries(self, x: Tensor) -> Tensor:
        """[B, S, C] → [B, heads, S, D], before they turn."""
        queries = split_heads(self.q_proj(x), self.heads)
        return self.q_norm(queries) if self.qk_norm else queries

    def keys(self, x: Tensor) -> Tensor:
        """[B, S, C] → [B, kv heads, S, D], before they turn."""
        keys = split_heads(self.k_proj(x), self.kv_heads)
        return self.k_norm(keys) if self.qk_norm else keys


class DecoderMlp(nn.Module):
    """Gated MLP."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        sizes, bias = (config.hidden_size, config.intermediate_size), config.mlp_bias
        self.gate_proj = nn.Linear(*sizes, bias=bias, dtype=dtype)
        self.up_proj = nn.Linear(*sizes, bias=bias, dtype=dtype)
        self.down_proj = nn.Linear(*sizes[::-1], bias=bias, dtype=dtype)
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, C] → [B, S, C]."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
        self.self_attn = DecoderAttention(config, dtype)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
        self.mlp = DecoderMlp(config, dtype)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, allowed: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[B, S, C] → [B, S, C] and this layer's keys and values."""
        x, present, _ = self.attend(x, past, cos, sin, allowed)
        return self.feed_forward(x), present

    def attend(
        self, x: Tensor, past: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, allowed: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """First half with its residual; also hands out what it attended by, for the reducers that score by it."""
        attended, present, queries = self.self_attn(self.input_layernorm(x), past, cos, sin, allowed)
        return x + attended, present, queries

    def feed_forward(self, x: Tensor) -> Tensor:
        """Second half with its residual."""
        return x + self.mlp(self.post_attention_layernorm(x))


class DecoderStack(nn.Module):
    """The layers and the last norm, under the checkpoints' names."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config, dtype) for _ in range(config.layers))
        self.norm = RmsNorm(config.hidden_size, config.norm_eps)


class Decoder(GraphModule):
    """Layers, norm and head on the checkpoint's weights; a form adds how they run: `forward`, and the `ports` of its graph."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.language_model = DecoderStack(config, dtype)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, S, C] → [B, S, V], FP32."""
        return self.lm_head(self.language_model.norm(hidden)).to(torch.float32)

    def rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, 1, S, D] of [B, S] or [A, B, S], in FP32: angles of a long context need its mantissa."""
        if self.config.rope_axes:
            angles = self.angles(position_ids)[:, None]
        else:
            inv_freq = self.inv_freq(position_ids)
            angles = position_ids[:, None, :, None].to(torch.float32) * inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        scale = self.config.rope_scale
        return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)

    def angles(self, position_ids: Tensor) -> Tensor:
        """How far each frequency turns at [A, B, S], by its axis: [B, S, D/2]."""
        axes = torch.tensor(self.config.rope_axes, device=position_ids.device)
        by_axis = position_ids.index_select(0, axes).permute(1, 2, 0).to(torch.float32)
        return by_axis * self.inv_freq(position_ids)

    def inv_freq(self, like: Tensor) -> Tensor:
        """[D/2], where `like` is."""
        return torch.tensor(self.config.inv_freq, dtype=torch.float32, device=like.device)

    def positions_port(self, batch: int | str) -> Port:
        """Position ids [B, S], or [A, B, S] of several axes."""
        return Port("position_ids", self.config.position_axes(batch, "sequence_length"))

    def planes_port(self, batch: int | str) -> tuple[Port, ...]:
        """What is added after the first layers [B, L, S, C], zeros where no visual token stands; none of a decoder without."""
        config = self.config
        axes = (batch, config.planes, "sequence_length", config.hidden_size)
        return (Port(graph_names.PLANES, axes, self.dtype),) if config.planes else ()

    def caches(self, name: str, batch: int | str, rows: Callable[[int], int | str]) -> tuple[Port, ...]:
        """Key and value [batch, kv heads, rows, D] of each layer, whose number gives its rows."""
        heads, size = self.config.kv_heads, self.config.head_dim
        return tuple(
            Port(f"{name}.{i}.{part}", (batch, heads, rows(i), size), self.dtype)
            for i in range(self.config.layers)
            for part in ("key", "value")
        )


@dataclass(frozen=True)
class DecoderForm:
    """How a decoder's graph keeps its KV cache.

    Attributes:
        module: (config, dtype, rows, per_layer, batch) → the graph's module. `rows` of a static cache are fixed at export, and so
            is its `batch`; `per_layer` gives each layer's cache a length of its own, as after a prompt that was reduced inside the
            decoder.
        in_place: whether a step writes its rows into the cache that it reads.
        last_row_only: whether logits are computed after the last token alone.
        apart: whether cached rows and new rows are attended to in two parts, each with scores of its own.
        per_layer: name of the form that serves where each layer has a length of its own; None for this one.
    """

    module: Callable[[DecoderConfig, torch.dtype, int | None, bool, int], Decoder]
    in_place: bool = False
    last_row_only: bool = False
    apart: bool = False
    per_layer: str | None = None


class EmbedTokens(GraphModule):
    """The embedding graph: input_ids [B, S] int64 → inputs_embeds [B, S, C]."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.channels, self.dtype = config.hidden_size, dtype
        self.language_model = nn.ModuleDict(
            {"embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)}
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] → [B, S, C]."""
        return self.language_model["embed_tokens"](input_ids)

    def ports(self) -> Ports:
        """Of the embedding graph."""
        axes = ("batch_size", "sequence_length")
        return Ports((Port("input_ids", axes),), (Port("inputs_embeds", (*axes, self.channels), self.dtype),))


def with_plane(hidden: Tensor, planes: Tensor | None, layer: int) -> Tensor:
    """Hidden states [B, S, C] after a layer, with what is to be added there of planes [B, L, S, C]."""
    return hidden if planes is None or layer >= planes.shape[1] else hidden + planes[:, layer]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, half-split layout: x [B, H, S, D], cos and sin [B, 1, S, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def causal_mask(total: int, hidden: Tensor) -> Tensor:
    """[S, T] bool: which of the T = P + S tokens, `total`, each of the S new ones in `hidden` may see."""
    new = hidden.shape[1]
    column = torch.arange(total, device=hidden.device)
    row = torch.arange(new, device=hidden.device) + (total - new)
    return column[None, :] <= row[:, None]
