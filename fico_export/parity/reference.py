"""The checkpoint as transformers runs it: the reference for everything but the reducers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlavaForConditionalGeneration

from fico_export.models.parts.transformers_quiet import quiet_transformers


class Reference:
    """A checkpoint in FP32, run without a KV cache, whole sequence by whole sequence."""

    def __init__(self, folder: Path) -> None:
        quiet_transformers()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded: Any = LlavaForConditionalGeneration.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        self._model = loaded.eval()

    def embed(self, token_ids: list[int]) -> npt.NDArray[np.float32]:
        """Embeddings [S, C]."""
        with torch.inference_mode():
            return np.asarray(self._model.get_input_embeddings()(torch.tensor(token_ids)))

    def image_features(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """All N features [N, D] of one picture [1, 3, S, S]."""
        with torch.inference_mode():
            features = self._model.get_image_features(torch.from_numpy(pixels))
        # transformers has returned a tensor, a list of tensors, and an output object over its versions.
        features = getattr(features, "pooler_output", features)
        return np.asarray(features[0]).reshape(-1, features[0].shape[-1])

    def logits(self, embeds: npt.NDArray[np.float32], positions: list[int]) -> npt.NDArray[np.float32]:
        """Logits [S, V] for embeddings [S, C] at the given position ids."""
        with torch.inference_mode():
            output = self._model(
                inputs_embeds=torch.from_numpy(np.ascontiguousarray(embeds, np.float32))[None],
                position_ids=torch.tensor([positions]),
                # Without a mask, transformers takes a gap in the positions for the start of another sequence.
                attention_mask=torch.ones(1, len(positions), dtype=torch.int64),
                use_cache=False,
            )
        return np.asarray(output.logits[0].to(torch.float32))
