"""What transformers' ``generate`` makes of logits under a checkpoint's generation config, before it takes the largest."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from fico_export.bundle.generation_config import FILE_NAME, not_supported
from fico_export.errors import CheckpointError
from fico_export.models.parts.transformers_quiet import quiet_transformers
from fico_export.models.weights import read_json


def generate_scores(
    folder: Path,
    logits: npt.NDArray[np.float32],
    tokens: Sequence[int],
    prompt: Sequence[int],
    eos_ids: Sequence[int],
) -> npt.NDArray[np.float32]:
    """Scores [T', V] that ``generate`` takes the largest of, with T' < T where it ends earlier than the answer did.

    It runs as it is, greedily, on a model that says the given logits; each token of the answer is forced on it.

    Args:
        folder: of the checkpoint.
        logits: before each token of the answer, [T, V].
        tokens: the answer [T].
        prompt: token ids of the prompt.
        eos_ids: tokens that end an answer, where the checkpoint's generation config names none.

    Raises:
        CheckpointError: ``generate`` refuses the checkpoint's generation config.
    """
    quiet_transformers()
    ids = torch.tensor([list(prompt)])
    forced = _Forced(tokens)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _Replay(torch.from_numpy(np.ascontiguousarray(logits)), len(prompt)).generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=_generation_config(folder, len(tokens), eos_ids),
                logits_processor=[forced],
            )
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"generate refuses {folder / FILE_NAME}: {' '.join(str(error).split())}",
            fix="correct the value there",
        ) from error
    return np.stack(forced.seen)


def _generation_config(folder: Path, new_tokens: int, eos_ids: Sequence[int]) -> GenerationConfig:
    """The checkpoint's, as ``from_pretrained`` of a model finds it, for a greedy answer of so many tokens."""
    if (folder / FILE_NAME).exists():
        content = read_json(folder / FILE_NAME)
    else:
        content = GenerationConfig.from_model_config(read_json(folder / "config.json")).to_dict()
    left_out = not_supported(content)  # an export has warned of them
    config = GenerationConfig.from_dict({k: v for k, v in content.items() if k not in left_out})
    config.do_sample, config.use_cache, config.max_new_tokens = False, False, new_tokens
    config.max_length = config.stop_strings = config.cache_implementation = None
    config.return_dict_in_generate, config.pad_token_id = False, 0
    if config.eos_token_id is None:
        config.eos_token_id = list(eos_ids) or None
    return config


class _Replay(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A model that says given logits [T, V], one row after another, whatever it is asked."""

    def __init__(self, rows: torch.Tensor, prompt_tokens: int) -> None:
        super().__init__(PretrainedConfig(vocab_size=rows.shape[1]))
        self._rows, self._prompt_tokens = torch.nn.Parameter(rows, requires_grad=False), prompt_tokens

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self._rows[input_ids.shape[1] - self._prompt_tokens][None, None])


class _Forced(LogitsProcessor):  # type: ignore[misc]
    """Comes after the processors of ``generate``: keeps what they made, and leaves one token to take."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self.seen: list[npt.NDArray[np.float32]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self._tokens[len(self.seen)]
        self.seen.append(np.asarray(scores[0].clone()))
        only = torch.full_like(scores, -torch.inf)
        only[:, token] = 0
        return only
