"""The decoder layer by layer in FP32, for whole sequences without a cache: one layer's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fico_export.models.decoders.base import Decoder, DecoderConfig, DecoderLayer, causal_mask, with_plane
from fico_export.models.weights import Weights

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Tokens(NamedTuple):
    """A sequence as the decoder takes it: embeddings [1, S, C] in FP32, position ids [1, S] or [A, 1, S], planes [1, L, S, C] or None."""

    embeds: Tensor
    positions: Tensor
    planes: Tensor | None = None

    @classmethod
    def of(
        cls,
        embeds: npt.NDArray[Any],
        positions: npt.NDArray[np.int64],
        planes: npt.NDArray[Any] | None,
    ) -> Tokens:
        """Of embeddings [S, C], position ids as above, and planes [L, S, C]."""
        added = None if planes is None else torch.from_numpy(planes.astype(np.float32, copy=False))[None]
        return cls(torch.from_numpy(embeds)[None], torch.from_numpy(positions), added)


class Streamed:
    """Hidden states of several sequences on their way through the decoder.

    Args:
        checkpoint: whose weights; read anew for each layer.
        config: of the decoder.
        sequences: what goes in.

    Attributes:
        hidden: of each sequence, [1, S, C] after the layers that were run.
    """

    def __init__(self, checkpoint: Weights, config: DecoderConfig, sequences: Sequence[Tokens]) -> None:
        self._checkpoint, self._config, self._sequences = checkpoint, config, sequences
        with torch.device("meta"):
            self._decoder = Decoder(config, torch.float32)
        self.hidden = [s.embeds for s in sequences]
        self._run = 0

    @property
    def layer_bytes(self) -> int:
        """Of one layer's weights."""
        return sum(p.nbytes for p in self._decoder.language_model.layers[0].parameters())

    def layer(self, i: int) -> DecoderLayer:
        """Layer i with its weights."""
        with torch.device("meta"):
            layer = DecoderLayer(self._config, torch.float32)
        return self._filled(layer, f"language_model.layers.{i}.")

    @torch.inference_mode()
    def run(self, layer: DecoderLayer) -> None:
        """Take every sequence through the layer that follows."""
        for n, (hidden, tokens) in enumerate(zip(self.hidden, self._sequences, strict=True)):
            cos, sin = self._decoder.rotary(tokens.positions, torch.float32)
            empty = hidden.new_zeros(1, self._config.kv_heads, 0, self._config.head_dim)
            hidden, _ = layer(hidden, (empty, empty), cos, sin, causal_mask(hidden.shape[1], hidden))
            self.hidden[n] = with_plane(hidden, tokens.planes, self._run)
        self._run += 1

    @torch.inference_mode()
    def logits(self) -> list[Tensor]:
        """Logits [S, V] of each sequence, once all layers were run."""
        norm = self._filled(self._decoder.language_model.norm, "language_model.norm.")
        head = self._filled(self._decoder.lm_head, "lm_head.")
        return [head(norm(hidden))[0] for hidden in self.hidden]

    def _filled(self, module: ModuleT, prefix: str) -> ModuleT:
        names = [prefix + name for name, _ in module.named_parameters()]
        state = {name.removeprefix(prefix): t.to(torch.float32) for name, t in self._checkpoint.stream(names)}
        module.load_state_dict(state, assign=True)
        return module.eval().requires_grad_(False)
