"""Llama-shaped decoders (Llama, Vicuna, Mistral, Qwen2) with a KV cache that goes in and comes out.

| tensor | shape | dtype |
|---|---|---|
| inputs_embeds (in) | [B, S, C] | the bundle's precision |
| attention_mask (in) | [B, P + S] | int64, 1 where a token is |
| position_ids (in) | [B, S] | int64 |
| past_key_values.{i}.key / .value (in) | [B, kv heads, P, D] | the bundle's precision |
| logits (out) | [B, S, V] | float32 |
| present.{i}.key / .value (out) | [B, kv heads, P + S, D] | the bundle's precision |

Letters: B batch, S new tokens, P past tokens, C channels, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from fico_export.models.parts.layers import RmsNorm, attend, join_heads, split_heads

EMBEDDINGS = "language_model.embed_tokens.weight"  # of a checkpoint, by its canonical name


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder. `inv_freq` are the rotary frequencies [D/2], `rope_scale` multiplies cos and sin."""

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
        queries = rotate(split_heads(self.q_proj(x), self.heads), cos, sin)
        return queries, rotate(split_heads(self.k_proj(x), self.kv_heads), cos, sin)


class DecoderMlp(nn.Module):
    """Gated MLP."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        sizes, bias = (config.hidden_size, config.intermediate_size), config.mlp_bias
        self.gate_proj = nn.Linear(*sizes, bias=bias, dtype=dtype)
        self.up_proj = nn.Linear(*sizes, bias=bias, dtype=dtype)
        self.down_proj = nn.Linear(*sizes[::-1], bias=bias, dtype=dtype)
        self.activation = ACT2FN[config.activation]

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


class Decoder(nn.Module):
    """The decoder graph: embeddings and a cache in, logits and the grown cache out; prefill and decode alike."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.language_model = DecoderStack(config, dtype)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Logits [B, S, V], then key and value of each layer; `past` holds key, value, key, value and so on."""
        cos, sin = self.rotary(position_ids, inputs_embeds.dtype)
        allowed = (
            causal_mask(attention_mask.shape[1], inputs_embeds)
            & (attention_mask != 0)[:, None, None, None, :]
        )
        hidden, present = inputs_embeds, []
        for i, layer in enumerate(self.language_model.layers):
            hidden, cache = layer(hidden, (past[2 * i], past[2 * i + 1]), cos, sin, allowed)
            present += cache
        return self.logits(hidden), *present

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, S, C] → [B, S, V], FP32."""
        return self.lm_head(self.language_model.norm(hidden)).to(torch.float32)

    def rotary(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, 1, S, D], computed in FP32: angles of a long context need its mantissa."""
        inv_freq = torch.tensor(self.config.inv_freq, dtype=torch.float32, device=position_ids.device)
        angles = position_ids[:, None, :, None].to(torch.float32) * inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        scale = self.config.rope_scale
        return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


class EmbedTokens(nn.Module):
    """The embedding graph: input_ids [B, S] int64 → inputs_embeds [B, S, C]."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.language_model = nn.ModuleDict(
            {"embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)}
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] → [B, S, C]."""
        return self.language_model["embed_tokens"](input_ids)


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
