"""Rotary frequencies that depend on the length of the prompt, up to where they do not."""

import pytest
import torch
from checkpoints import write_tiny
from cli_tools import edit_json
from transformers import LlavaForConditionalGeneration

from fico_export import models

CONTEXT = 96
SPELLINGS = {
    "rope_scaling, type": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "rope_scaling, rope_type": {"rope_scaling": {"rope_type": "dynamic", "factor": 1.7}},
    "rope_parameters, rope_type": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 5e5}},
    "rope_parameters, type": {"rope_parameters": {"type": "dynamic", "factor": 4.0, "rope_theta": 5e5}},
    "rope_theta beside": {"rope_scaling": {"type": "dynamic", "factor": 8.0}, "rope_theta": 1e6},
}  # fmt: skip


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_dynamic_is_served_up_to_max_position_embeddings_with_transformers_frequencies(
    tmp_path, spelling, model_type
):
    write_tiny(tmp_path, text={"model_type": model_type, "max_position_embeddings": CONTEXT})
    config = {f"text_config__{key}": value for key, value in SPELLINGS[spelling].items()}
    edit_json(tmp_path / "config.json", text_config__rope_parameters=...)
    edit_json(tmp_path / "config.json", **config)

    ours = models.load(tmp_path).decoder_config

    rotary = LlavaForConditionalGeneration.from_pretrained(tmp_path).model.language_model.rotary_emb
    cos, sin = rotary(torch.zeros(1), torch.arange(CONTEXT)[None])  # [1, CONTEXT, D]
    angles = torch.outer(torch.arange(CONTEXT).float(), torch.tensor(ours.inv_freq)).repeat(1, 2)
    assert ours.context == CONTEXT
    assert torch.equal(cos[0], angles.cos() * ours.rope_scale)
    assert torch.equal(sin[0], angles.sin() * ours.rope_scale)
    beyond, _ = rotary(torch.zeros(1), torch.arange(2 * CONTEXT)[None])
    assert not torch.equal(beyond[0, :CONTEXT], cos[0])  # there they differ, and nothing is served
