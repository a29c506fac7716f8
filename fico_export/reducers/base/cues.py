"""The evidence a site offers to a reducer, computed only when asked for.

Letters: B batch, n live visual tokens (patches), m rows of the attention (n, or 1 + n with a CLS row first),
H heads, D head size, A = H·D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fico_export.errors import ConfigError


@dataclass(frozen=True)
class Cues:
    """What a reducer may look at besides the tokens. Scores are FP32 whatever the model's precision.

    Attributes:
        grid: rows and columns of the patch grid before any reduction.
        positions: [B, n] int64, raster position of each live token, ascending.
        queries: [B, m, A] of the site's attention, heads not split, not scaled; None where there is none.
        keys: [B, m, A], likewise.
        heads: H.
        has_cls: whether row 0 of queries and keys is the CLS token.
        sizes: [B, n] how many patches each token holds, where a method keeps count; None while each holds one.
        earlier: the cues of the layer that `Reducer.earlier_layer` names.
        following: queries and keys of the layer after the features, taken as one head.
    """

    grid: tuple[int, int]
    positions: Tensor
    queries: Tensor | None = None
    keys: Tensor | None = None
    heads: int = 1
    has_cls: bool = False
    sizes: Tensor | None = None
    earlier: Cues | None = None
    following: Cues | None = None

    def logits(self) -> Tensor:
        """[B, m, m] scaled attention logits, averaged over heads.

        The mean over heads of q·k is one product of the un-split rows, so the layer's own attention stays fused.
        """
        queries, keys = self._attention_inputs()
        scale = (queries.shape[-1] // self.heads) ** -0.5 / self.heads
        return (queries * scale) @ keys.transpose(1, 2)

    def attention(self) -> Tensor:
        """[B, m, m] softmax attention, averaged over heads."""
        queries, keys = (self._split(x) for x in self._attention_inputs())
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(2, 3)
        return scores.softmax(-1).mean(1)

    def cls_attention(self) -> Tensor:
        """[B, n] attention that each patch gets from CLS, averaged over heads; `received` without a CLS token."""
        return self._received(1 if self.has_cls else None)

    def received(self) -> Tensor:
        """[B, n] attention that each patch gets from all tokens, CLS included, averaged over heads."""
        return self._received(None)

    def _received(self, first: int | None) -> Tensor:
        queries, keys = (self._split(x) for x in self._attention_inputs())
        scores = (queries[:, :, :first] * queries.shape[-1] ** -0.5) @ keys.transpose(2, 3)
        return scores.softmax(-1).mean((1, 2))[:, 1 if self.has_cls else 0 :]

    def mean_keys(self) -> Tensor:
        """[B, n, D] keys of the live tokens, averaged over heads."""
        _, keys = self._attention_inputs()
        return self._split(keys).mean(1)[:, 1 if self.has_cls else 0 :]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _attention_inputs(self) -> tuple[Tensor, Tensor]:
        if self.queries is None or self.keys is None:
            raise ConfigError(
                "the method reads attention, which this site does not offer",
                mend="use a method of this site: `fico list methods --verbose` shows each method's site",
            )
        return self.queries.to(torch.float32), self.keys.to(torch.float32)
