"""The checkpoint as transformers runs it: the reference for everything but the reducers. Where it has no such model, as torch does."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import CLIPModel

from fico_export.models.decoders.base import EMBEDDINGS
from fico_export.models.decoders.plain import PlainDecoder
from fico_export.models.decoders.reducing import Prefill, WithPast
from fico_export.models.parts.transformers_quiet import quiet_transformers
from fico_export.models.source import SourceModel
from fico_export.reducers.base.plan import ReductionPlan
from fico_export.reducers.base.reducer import Site
from fico_export.runtime.inputs.images import Pixels
from fico_export.runtime.inputs.layouts.base import Index
from fico_export.runtime.inputs.positions import as_input

Planes = npt.NDArray[Any] | None


def _batched(planes: Planes) -> torch.Tensor | None:
    """[L, S, C] → [1, L, S, C]."""
    return None if planes is None else torch.from_numpy(np.asarray(planes, np.float32))[None]


class Reference:
    """A checkpoint in FP32, run without a KV cache, whole sequence by whole sequence."""

    def __init__(self, folder: Path, name: str = "LlavaForConditionalGeneration") -> None:
        """Load a folder as transformers' class of that name."""
        quiet_transformers()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded: Any = getattr(transformers, name).from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        self._model = loaded.eval()

    def embed(self, token_ids: list[int]) -> npt.NDArray[np.float32]:
        """Embeddings [S, C]."""
        with torch.inference_mode():
            return np.asarray(self._model.get_input_embeddings()(torch.tensor(token_ids, dtype=torch.int64)))

    def image_features(
        self, pixels: Pixels
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """All features [N, D] of an image as the prompt shows them, newline vectors among them; and planes [L, N, D], if any."""
        values, given = torch.from_numpy(pixels.values), {}
        asked = inspect.signature(self._model.get_image_features).parameters
        if "image_sizes" in asked:
            values, given = values[None], {"image_sizes": torch.tensor([pixels.size[::-1]])}
        if "pixel_attention_mask" in asked:  # tiles of images, of which none shows padding
            values = values[None]
        if "image_grid_thw" in asked:
            values, grid = _patches(values, self._model.config.vision_config)
            given = {"image_grid_thw": torch.tensor([grid])}
        with torch.inference_mode():
            output = self._model.get_image_features(values, **given)
        # transformers has returned a tensor, a list of tensors, and an output object over its versions.
        features = getattr(output, "pooler_output", output)
        planes = getattr(output, "deepstack_features", None)
        # Of all tiles [T, n, D], or of each image in a list.
        of_image = features if torch.is_tensor(features) else features[0]
        return (
            np.asarray(of_image).reshape(-1, of_image.shape[-1]),
            np.stack([np.asarray(plane) for plane in planes]) if planes else None,
        )

    def logits(
        self, embeds: npt.NDArray[np.float32], positions: Index, planes: Planes = None
    ) -> npt.NDArray[np.float32]:
        """Logits [S, V] for embeddings [S, C] at position ids [A, S], with planes [L, S, C] where the decoder adds such."""
        # Without a mask, transformers takes a gap in the positions for the start of another sequence.
        mask = torch.ones(1, len(embeds), dtype=torch.int64)
        given = {
            "inputs_embeds": torch.from_numpy(np.ascontiguousarray(embeds, np.float32))[None],
            "position_ids": torch.from_numpy(as_input(positions)),
            "attention_mask": mask,
            "use_cache": False,
        }
        with torch.inference_mode():
            if planes is None:
                return np.asarray(self._model(**given).logits[0].to(torch.float32))
            rows = torch.from_numpy(np.asarray(planes, np.float32))
            added = {"visual_pos_masks": mask.bool(), "deepstack_visual_embeds": list(rows)}
            hidden = self._model.model.language_model(**given, **added).last_hidden_state
            return np.asarray(self._model.lm_head(hidden)[0].to(torch.float32))


def _patches(values: torch.Tensor, seen: Any) -> tuple[torch.Tensor, list[int]]:
    """Pixels [1, 3, H, W] as Qwen's processor hands them over, [N, 3·frames·P·P] cell by cell, and their grid (frames, rows, columns)."""
    size, side, frames = seen.patch_size, seen.spatial_merge_size, seen.temporal_patch_size
    rows, columns = values.shape[2] // size, values.shape[3] // size
    parts = values[0].reshape(3, rows // side, side, size, columns // side, side, size)
    patches = parts.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 3, 1, size * size)
    return patches.expand(-1, -1, frames, -1).flatten(1), [1, rows, columns]


class OwnReference:
    """A checkpoint of a family that transformers has no class for: this package's own modules, in torch and FP32."""

    def __init__(self, checkpoint: SourceModel) -> None:
        with torch.device("meta"):
            decoder = PlainDecoder(checkpoint.decoder_config, torch.float32)
        self._decoder = checkpoint.with_weights(decoder)
        self._config = checkpoint.decoder_config
        self._table = checkpoint.checkpoint.load(EMBEDDINGS).to(torch.float32)

    def embed(self, token_ids: list[int]) -> npt.NDArray[np.float32]:
        """Embeddings [S, C]."""
        return self._table[token_ids].numpy()

    def logits(
        self, embeds: npt.NDArray[np.float32], positions: Index, planes: Planes = None
    ) -> npt.NDArray[np.float32]:
        """As of `Reference`."""
        empty = torch.zeros(1, self._config.kv_heads, 0, self._config.head_dim)
        with torch.inference_mode():
            logits, *_ = self._decoder(
                torch.from_numpy(np.ascontiguousarray(embeds, np.float32))[None],
                torch.ones(1, len(embeds), dtype=torch.int64),
                torch.from_numpy(as_input(positions)),
                [empty] * (2 * self._config.layers),
                _batched(planes),
            )
        return np.asarray(logits[0])


AnyReference = Reference | OwnReference


def reference_of(checkpoint: SourceModel) -> AnyReference:
    """Transformers' model of a checkpoint, or this package's own modules where it has none."""
    name = checkpoint.transformers_class
    return Reference(checkpoint.folder, name) if name else OwnReference(checkpoint)


def clip_text_rows(folder: Path, input_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Unit-length embeddings [S, P] of texts as token ids [S, L], by the CLIP model in a folder."""
    quiet_transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded: Any = CLIPModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    with torch.inference_mode():
        output = loaded.eval().get_text_features(torch.from_numpy(input_ids))
    # As with images: a tensor or an output object, by the version.
    rows = getattr(output, "pooler_output", output)
    return np.asarray(rows / rows.norm(dim=-1, keepdim=True))


class ReducedReference:
    """A decoder that reduces visual tokens, in torch and FP32: one prompt at a time, then token after token.

    Attributes:
        kept: [K] which of the image's tokens are left after the last prompt.
    """

    kept: npt.NDArray[np.int64]

    def __init__(self, checkpoint: SourceModel, plan: ReductionPlan) -> None:
        step = plan.at(Site.DECODER_LAYER)
        assert step is not None
        with torch.device("meta"):
            prefill = Prefill(checkpoint.decoder_config, step, torch.float32)
            after = WithPast(checkpoint.decoder_config, torch.float32)
        self._prefill = checkpoint.with_weights(prefill)
        after.load_state_dict(self._prefill.state_dict(), assign=True)
        self._after = after.eval()
        self._past: list[torch.Tensor] = []

    def begin(
        self, embeds: npt.NDArray[Any], positions: Index, visual_rows: Index, planes: Planes = None
    ) -> npt.NDArray[np.float32]:
        """Logits [V] after a prompt of embeddings [S, C] at position ids [A, S], the image's tokens in rows [N], with planes [L, S, C] if any."""
        given = torch.from_numpy(np.ascontiguousarray(embeds, np.float32))[None]
        with torch.inference_mode():
            logits, kept, *self._past = self._prefill(
                given,
                torch.from_numpy(as_input(positions)),
                torch.from_numpy(visual_rows)[None],
                _batched(planes),
            )
        self.kept = np.asarray(kept[0])
        return np.asarray(logits[0, -1])

    def append(self, embeds: npt.NDArray[Any], position: Index) -> npt.NDArray[np.float32]:
        """Logits [V] after one more token of embedding [1, C] at position ids [A, 1]."""
        with torch.inference_mode():
            logits, *self._past = self._after(
                torch.from_numpy(np.ascontiguousarray(embeds, np.float32))[None],
                torch.from_numpy(as_input(position)),
                self._past,
            )
        return np.asarray(logits[0, -1])
