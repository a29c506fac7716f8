"""A bundle with INT4 weights against torch computing with the same weights, and how far those are from the original ones.

The weights are quantised again from the checkpoint, not read from the bundle. Both decoders run layer by layer beside each
other, so that memory is two layers' whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from fico_export.bundle.manifest import Quantization
from fico_export.exporter import awq, quantize
from fico_export.exporter.stream import Streamed, Tokens
from fico_export.models.decoders.base import EMBEDDINGS, DecoderConfig
from fico_export.models.weights import Weights
from fico_export.parity.report import Check, Report
from fico_export.progress import Progress
from fico_export.runtime.inputs.layouts.base import Index
from fico_export.runtime.inputs.positions import as_input


def rounded(folder: Path, checkpoint: Weights, record: Quantization) -> Weights:
    """The checkpoint as a bundle's graphs compute with it."""
    if record.scheme == "awq":
        checkpoint = awq.folded(checkpoint, awq.load(folder))
    return quantize.dequantized(checkpoint, record)


class Given(Protocol):
    """A sequence as the decoder takes it: embeddings [S, C], position ids [A, S], and planes [L, S, C] or None."""

    @property
    def embeds(self) -> npt.NDArray[np.float32]: ...  # noqa: D102 - as above
    @property
    def positions(self) -> Index: ...  # noqa: D102
    @property
    def planes(self) -> npt.NDArray[np.float32] | None: ...  # noqa: D102


class StreamedReference:
    """A decoder in FP32 with the weights as the bundle has them, reporting on the way how far each layer is from the original.

    Args:
        original: the checkpoint.
        quantised: the same after rounding.
        config: of the decoder.
    """

    def __init__(self, original: Weights, quantised: Weights, config: DecoderConfig) -> None:
        self._original, self._quantised, self._config = original, quantised, config
        self._table = original.load(EMBEDDINGS)

    def embed(self, token_ids: list[int]) -> npt.NDArray[np.float32]:
        """Embeddings [S, C]."""
        return self._table[token_ids].to(torch.float32).numpy()

    def logits(
        self, prompts: Sequence[Given], report: Report, progress: Progress
    ) -> list[npt.NDArray[np.float32]]:
        """Logits [S, V] of each sequence; cosines of the layers go to the report."""
        sequences = [Tokens.of(p.embeds, as_input(p.positions), p.planes) for p in prompts]
        original = Streamed(self._original, self._config, sequences)
        rounded = Streamed(self._quantised, self._config, sequences)
        progress.stage("verify layers", original.layer_bytes * self._config.layers)
        for i in range(self._config.layers):
            for streamed in (original, rounded):
                streamed.run(streamed.layer(i))
            _report(report, f"layer {i}", rounded.hidden, original.hidden)
            progress.advance(original.layer_bytes)
        wide = original.logits()
        logits = rounded.logits()
        _report(report, "logits", logits, wide)
        return [tensor.numpy() for tensor in logits]


def _report(report: Report, what: str, rounded: list[torch.Tensor], original: list[torch.Tensor]) -> None:
    """How near hidden states or logits [..., C] are to those of the original weights, in the mean of the tokens."""
    cosines = [
        torch.nn.functional.cosine_similarity(a, b, dim=-1).flatten()
        for a, b in zip(rounded, original, strict=True)
    ]
    value = torch.cat(cosines).mean().item()
    report.checks.append(Check(what, "cosine of INT4 to FP32", value, None, True))
