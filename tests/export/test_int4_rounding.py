"""Rounding to blocks: its error against llama.cpp's Q4_0, written out as loops, and the bytes against plain arithmetic."""

import numpy as np
import pytest
import torch

from fico_export import demo, models
from fico_export.errors import ConfigError
from fico_export.exporter.rounding import quantize

RANDOM = np.random.RandomState(0)
CASES = {
    "normal": RANDOM.randn(24, 96) * 0.02,
    "heavy-tailed": RANDOM.standard_t(3, (24, 96)) * 0.02,
    "outliers": RANDOM.randn(24, 96) * 0.02 * (1 + 60 * (RANDOM.rand(24, 96) > 0.99)),
    "positive": np.abs(RANDOM.randn(24, 96)),
    "constant": np.full((24, 96), -0.3),
    "zeros": np.zeros((24, 96)),
    "large": RANDOM.randn(24, 96) * 1e4,
    "subnormal scales": RANDOM.randn(24, 96) * 1e-6,
    "fifteen levels": RANDOM.randint(-7, 8, (24, 96)) * 0.125,
}


def q4_0_errors(weight):
    """Squared error of each block of 32, as ggml's quantize_row_q4_0 makes it: [N, K / 32]."""
    weight = weight.astype(np.float32)
    errors = np.zeros((weight.shape[0], weight.shape[1] // 32))
    for n, g in np.ndindex(errors.shape):
        block = weight[n, 32 * g : 32 * g + 32]
        largest = block[np.argmax(np.abs(block))]
        d = np.float32(largest / -8)
        inverse = np.float32(1) / d if d else np.float32(0)
        for x in block:
            code = min(15, int(x * inverse + np.float32(8.5)))
            errors[n, g] += (float(np.float16(d)) * (code - 8) - float(x)) ** 2
    return errors


def errors_of(weight, blocks, block):
    """Squared error of each block, from codes and scales alone."""
    weight = weight.astype(np.float64)
    errors = np.zeros((weight.shape[0], len(blocks.scales)))
    for (n, k), x in np.ndenumerate(weight):
        g = k // block
        errors[n, g] += (int(blocks.codes[k, n]) * float(blocks.scales[g, n]) - x) ** 2
    return errors


@pytest.mark.parametrize("case", CASES)
def test_no_block_has_more_error_than_q4_0(case):
    weight = CASES[case].astype(np.float32)
    blocks = quantize(torch.from_numpy(weight), 4, 32, signed=True)
    mine, theirs = errors_of(weight, blocks, 32), q4_0_errors(weight)

    assert (mine <= theirs * (1 + 1e-9)).all()
    if case in ("normal", "heavy-tailed", "outliers", "large"):
        assert mine.sum() < 0.98 * theirs.sum()
    if case == "fifteen levels":
        assert mine.sum() == 0


def test_no_block_of_the_demo_model_has_more_error_than_q4_0():
    checkpoint = models.load(demo.FOLDER).checkpoint
    for part in ("self_attn.q_proj", "mlp.down_proj"):
        weight = checkpoint.load(f"language_model.layers.0.{part}.weight").to(torch.float32)[:40]
        mine = errors_of(weight.numpy(), quantize(weight, 4, 32, signed=True), 32)

        assert (mine <= q4_0_errors(weight.numpy()) * (1 + 1e-9)).all()


@pytest.mark.parametrize("case", CASES)
def test_positive_scales_are_positive_and_lose_little(case):
    weight = CASES[case].astype(np.float32)
    blocks = quantize(torch.from_numpy(weight), 4, 32, signed=False)

    assert (blocks.scales > 0).all()
    assert blocks.codes.min() >= -8
    assert blocks.codes.max() <= 7
    # Plain rounding to nearest, the largest weight on level 7, is among what is searched.
    largest = np.abs(weight).reshape(24, 3, 32).max(2)
    scale = np.repeat((largest / 7).astype(np.float16).astype(np.float64), 32, 1)
    codes = np.rint(np.divide(weight, scale, out=np.zeros((24, 96)), where=scale > 0))
    plain = ((np.clip(codes, -8, 7) * scale - weight) ** 2).sum()
    assert errors_of(weight, blocks, 32).sum() <= plain + 1e-6 * (weight.astype(np.float64) ** 2).sum()


def test_eight_bits_are_within_half_a_step():
    weight = CASES["heavy-tailed"].astype(np.float32)
    blocks = quantize(torch.from_numpy(weight), 8, 32, signed=True)
    step = np.abs(weight).reshape(24, 3, 32).max(2, keepdims=True) / 127

    assert (blocks.scales > 0).all()
    wide = blocks.dequantized(96).numpy()
    assert (np.abs(wide - weight).reshape(24, 3, 32) <= 0.51 * step + 127 * step * 2**-11).all()


def test_an_odd_width_is_filled_up_with_zeros():
    weight = torch.randn(5, 33, generator=torch.Generator().manual_seed(0))
    blocks = quantize(weight, 4, 32, signed=True)

    assert blocks.codes.shape == (64, 5)
    assert not blocks.codes[33:].any()
    assert blocks.dequantized(33).shape == (5, 33)
    whole = quantize(torch.nn.functional.pad(weight, (0, 31)), 4, 32, signed=True)
    assert (blocks.codes == whole.codes).all()


def test_any_number_of_threads_gives_the_same_bytes(monkeypatch):
    weight = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(quantize(weight, 4, 32, signed=True))

    assert (results[0].codes == results[1].codes).all()
    assert (results[0].scales == results[1].scales).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_what_no_scale_can_hold_is_refused(value):
    weight = torch.ones(4, 64)
    weight[2, 40] = value
    with pytest.raises(ConfigError, match="NaN, infinity or values beyond"):
        quantize(weight, 4, 32, signed=False)
