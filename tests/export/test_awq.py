"""Activation-aware scaling: it changes nothing before rounding, and makes rounding lose less where channels are uneven."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from test_int4_graph import record
from transformers import LlavaForConditionalGeneration

from fico_export import models
from fico_export.calibration import read_prompts
from fico_export.errors import ConfigError
from fico_export.exporter import awq, quantize
from fico_export.exporter.stream import Streamed, Tokens
from fico_export.exporter.views import View
from fico_export.progress import Silent

LOUD = 7  # a channel of every layer's input far above the others, as real models have


@pytest.fixture(scope="module")
def model(tiny_checkpoint_v5):
    loaded = models.load(tiny_checkpoint_v5)

    def change(name, tensor):
        if name.endswith("layernorm.weight"):
            tensor = tensor.clone()
            tensor[LOUD] *= 30
        return tensor

    return View(loaded.checkpoint, change), loaded.decoder_config


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    return [Tokens(torch.randn(1, n, 64, generator=generator), torch.arange(n)[None]) for n in (9, 17)]


def logits(checkpoint, config, prompts):
    streamed = Streamed(checkpoint, config, prompts)
    for i in range(config.layers):
        streamed.run(streamed.layer(i))
    return torch.cat(streamed.logits())


def test_layer_by_layer_equals_transformers(tiny_checkpoint_v5, prompts):
    loaded = models.load(tiny_checkpoint_v5)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        whole = LlavaForConditionalGeneration.from_pretrained(tiny_checkpoint_v5, dtype=torch.float32).eval()
        want = torch.cat([whole(inputs_embeds=p.embeds, position_ids=p.positions).logits[0] for p in prompts])

    torch.testing.assert_close(
        logits(loaded.checkpoint, loaded.decoder_config, prompts), want, atol=1e-4, rtol=0
    )


def test_folding_changes_no_output_and_rounding_loses_less(model, prompts):
    checkpoint, config = model
    rec = record("dequantize")
    factors = awq.search(checkpoint, config, prompts, rec, Silent())
    folded = awq.folded(checkpoint, factors)
    want = logits(checkpoint, config, prompts)
    torch.testing.assert_close(logits(folded, config, prompts), want, atol=1e-3, rtol=1e-3)

    plain, scaled = (
        (logits(quantize.dequantized(c, rec), config, prompts) - want).norm() for c in (checkpoint, folded)
    )
    assert scaled < 0.8 * plain
    for i in range(config.layers):
        factor = factors[f"language_model.layers.{i}.input_layernorm"]
        assert factor.argmax() == LOUD


def test_values_that_heads_share_are_left_alone(model, prompts):
    """The tiny checkpoint has two query heads to each key-value head."""
    checkpoint, config = model
    factors = awq.search(checkpoint, config, prompts, record("matmul_nbits"), Silent())

    groups = {name.rpartition(".")[2] for name in factors}
    assert groups == {"input_layernorm", "post_attention_layernorm", "up_proj"}


def test_factors_come_back_as_they_were_saved(tmp_path):
    factors = {"language_model.layers.0.up_proj": np.arange(5, dtype=np.float32)}
    awq.save(factors, tmp_path)

    (name, stored), *rest = awq.load(tmp_path).items()
    assert not rest
    assert name == "language_model.layers.0.up_proj"
    assert (stored == factors[name]).all()


def test_prompts_are_the_decoders_own_input(tiny_checkpoint_v5, tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    lines = [json.dumps({"image": "red.png", "prompt": "What colour?"}), ""]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    (tokens,) = read_prompts(tmp_path / "set.jsonl", models.load(tiny_checkpoint_v5))

    assert tokens.embeds.shape[1] == tokens.positions.shape[1] > 64
    assert torch.isfinite(tokens.embeds).all()


@pytest.mark.parametrize("text", ["", "no json", '{"image": "a.png"}', "[1]"])
def test_a_file_that_is_no_calibration_set_is_refused(text, tiny_checkpoint_v5, tmp_path):
    (tmp_path / "set.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="--calibrate"):
        read_prompts(tmp_path / "set.jsonl", models.load(tiny_checkpoint_v5))
