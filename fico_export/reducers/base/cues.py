"""The evidence a site offers to a reducer, computed only when asked for.

Where the merger joins p patches to one visual token, that cell is a token here, and its cues are the mean of its patches'.

Letters: B batch, n live visual tokens, p patches of each, m rows of the attention (n·p, and one more with a CLS row first),
T rows of a prompt, H heads, D head size, A = H·D.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fico_export.errors import ConfigError
from fico_export.reducers.stages.select import take


@dataclass(frozen=True)
class Prompt:
    """The text beside the image, as a site knows it.

    Attributes:
        embeds: [B, T, C] what goes into the decoder's first layer.
        mask: [B, T] bool, which of the T rows are text that follows the image; the others are anything.
        visual_embeds: [B, N, C] likewise of the image, before any reduction in the decoder.
        queries: [B, T, A] in a decoder layer, of all rows of the sequence, rotated, not scaled.
        keys: [B, T, A] likewise, a key for every query head.
        visual: [B, n] int64, which of the rows are the live visual tokens.
    """

    embeds: Tensor
    mask: Tensor
    visual_embeds: Tensor
    queries: Tensor | None = None
    keys: Tensor | None = None
    visual: Tensor | None = None


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
        features: [B, n, C] what the projector made each live token of, at its output.
        sensitivity: [B, n] how far a small change of those moves the live tokens, there likewise.
        prompt: the text, in a decoder layer, and at the projector's output for a method that reads it there.
        clip_text: [B, P] mean of the unit-length CLIP embeddings of the text, at the projector's output likewise.
        clip_tokens: [B, n, P] the live tokens in the same space, not of unit length.
        valid: [B, n] bool, which tokens may be kept: those that show padding may not; None where all may.
        cell: p.
        channels: of the tokens' own, where others follow that are to be merged as they are; None where all are.
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
    features: Tensor | None = None
    sensitivity: Tensor | None = None
    prompt: Prompt | None = None
    clip_text: Tensor | None = None
    clip_tokens: Tensor | None = None
    valid: Tensor | None = None
    cell: int = 1
    channels: int | None = None

    def own(self, tokens: Tensor) -> Tensor:
        """Of tokens [B, n, C + …], the channels [B, n, C] that a method may look at, and not only merge."""
        return tokens if self.channels is None else tokens[..., : self.channels]

    def logits(self) -> Tensor:
        """[B, n, n], or [B, 1 + n, 1 + n] with a CLS row first: scaled attention logits, averaged over heads.

        The mean over heads of q·k is one product of the un-split rows, so the layer's own attention stays fused; that over cells is
        the product of their mean rows.
        """
        queries, keys = (self._mean(rows) for rows in self._attention_inputs())
        scale = (queries.shape[-1] // self.heads) ** -0.5 / self.heads
        return (queries * scale) @ keys.transpose(1, 2)

    def attention(self) -> Tensor:
        """As of `logits`, softmax attention, averaged over heads."""
        queries, keys = (self._split(x) for x in self._attention_inputs())
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(2, 3)
        between = scores.softmax(-1).mean(1)
        return self._mean(self._mean(between).transpose(1, 2)).transpose(1, 2)

    def cls_attention(self) -> Tensor:
        """[B, n] attention that each patch gets from CLS, averaged over heads; `received` without a CLS token."""
        return self._received(1 if self.has_cls else None)

    def received(self) -> Tensor:
        """[B, n] attention that each patch gets from all tokens, CLS included, averaged over heads."""
        return self._received(None)

    def _received(self, first: int | None) -> Tensor:
        queries, keys = (self._split(x) for x in self._attention_inputs())
        scores = (queries[:, :, :first] * queries.shape[-1] ** -0.5) @ keys.transpose(2, 3)
        received = scores.softmax(-1).mean((1, 2))[:, 1 if self.has_cls else 0 :]
        return received if self.cell == 1 else received.unflatten(1, (-1, self.cell)).mean(2)

    def mean_keys(self) -> Tensor:
        """[B, n, D] keys of the live tokens, averaged over heads."""
        _, keys = self._attention_inputs()
        return self._mean(self._split(keys).mean(1))[:, 1 if self.has_cls else 0 :]

    def last_attention(self) -> Tensor:
        """[B, n] softmax attention of the prompt's last token to each live token, averaged over heads."""
        queries, keys, visual = self._prompt_rows()
        scores = (queries[:, :, -1:] * queries.shape[-1] ** -0.5) @ keys.transpose(2, 3)
        return take(scores.softmax(-1).mean(1).transpose(1, 2), visual)[..., 0]

    def text_attention(self) -> Tensor:
        """[B, T, n] causal softmax attention of every row of the prompt to each live token, averaged over heads."""
        queries, keys, visual = self._prompt_rows()
        place = torch.arange(queries.shape[2], device=queries.device)
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(2, 3)
        rows = torch.where(place[None, :] <= place[:, None], scores, -torch.inf).softmax(-1).mean(1)
        return take(rows.transpose(1, 2), visual).transpose(1, 2)

    def text_logits(self) -> tuple[Tensor, Tensor]:
        """[B, n, T] and [B, T, n]: scaled logits from live tokens to the prompt's rows and back, without causal mask."""
        queries, keys, _ = self._prompt_rows()
        scale = queries.shape[-1] ** -0.5 / self.heads
        mine, my_keys = self._attention_inputs()
        rows = queries.transpose(1, 2).flatten(2), keys.transpose(1, 2).flatten(2)
        return (mine * scale) @ rows[1].transpose(1, 2), (rows[0] * scale) @ my_keys.transpose(1, 2)

    def kept(self, indices: Tensor) -> Cues:
        """The cues of the tokens at indices [B, K], the CLS row with them."""
        first = int(self.has_cls)

        def rows(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            patches = x[:, first:]
            if self.cell == 1:
                kept = take(patches, indices)
            else:
                cells = take(patches.unflatten(1, (-1, self.cell)).flatten(2), indices)
                kept = cells.reshape(len(x), -1, x.shape[-1])
            return torch.cat([x[:, :first], kept], dim=1) if first else kept

        return replace(
            self,
            positions=take(self.positions, indices),
            queries=rows(self.queries),
            keys=rows(self.keys),
            valid=None,  # what is kept may be kept
        )

    def _prompt_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        prompt = self.prompt
        if prompt is None or prompt.queries is None or prompt.keys is None or prompt.visual is None:
            raise _not_offered("the decoder's attention")
        return (
            self._split(prompt.queries.to(torch.float32)),
            self._split(prompt.keys.to(torch.float32)),
            prompt.visual,
        )

    def _mean(self, rows: Tensor) -> Tensor:
        """Rows [B, n·p, A] of patches to those [B, n, A] of cells; a CLS row before them stays."""
        if self.cell == 1:
            return rows
        first = int(self.has_cls)
        cells = rows[:, first:].unflatten(1, (-1, self.cell)).mean(2)
        return torch.cat([rows[:, :first], cells], dim=1) if first else cells

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _attention_inputs(self) -> tuple[Tensor, Tensor]:
        if self.queries is None or self.keys is None:
            raise _not_offered("attention")
        return self.queries.to(torch.float32), self.keys.to(torch.float32)


def _not_offered(what: str) -> ConfigError:
    return ConfigError(
        f"the method reads {what}, which this site does not offer",
        fix="use a method of this site: `fico list methods --verbose` shows each method's site",
    )
