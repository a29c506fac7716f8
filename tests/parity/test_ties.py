"""The vision graph may part with torch where torch parts with itself, and nowhere else."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fico_export import models
from fico_export.parity import vision
from fico_export.parity.report import Report
from fico_export.runtime.inputs.images import Pixels
from fico_export.runtime.inputs.layout import Layout


def outcome(checkpoint, method, change, precision="fp32"):
    """The report on a graph that gives what torch gives, but for `change` of the kept indices [K]."""
    model = models.load(checkpoint)
    plan = model.plan(method, 16, {})
    with torch.device("meta"):
        module = model.vision(plan, torch.float32)
    module = model.with_weights(module)

    def encode_pixels(pixels, text):
        with torch.inference_mode():
            features, index = (np.asarray(t[0]) for t in module(torch.from_numpy(pixels.values)))
        return SimpleNamespace(features=features, keep_index=change(index))

    reduction = SimpleNamespace(method=method, keep=16, options={})
    manifest = SimpleNamespace(reduction=reduction, precision=precision, quantization=None)
    layout = Layout(model.layout, model.profiles, "original", model.tokens.image_id)
    vlm = SimpleNamespace(read_prompt=lambda text: {}, encode_pixels=encode_pixels, layout=layout)
    shape = model.profile.input_shape
    pixels = [Pixels(np.random.RandomState(i).randn(*shape).astype(np.float32), shape[2:]) for i in range(2)]
    report = Report("bundle", precision)
    vision.check_vision(report, manifest, model, vlm, model.profile, pixels)
    return report


def same(index):
    return index


def one_other(index):
    """Another token in place of the last one kept."""
    other = next(i for i in reversed(range(64)) if i not in index)
    return np.sort(np.concatenate([index[:-1], [other]]))


def test_what_torch_keeps_passes(tiny_checkpoint):
    assert not outcome(tiny_checkpoint, "cls-topk", same).failed


def test_another_token_fails_where_torch_keeps_its_own(tiny_checkpoint):
    failed = outcome(tiny_checkpoint, "cls-topk", one_other).failed

    assert next((check.metric, check.threshold) for check in failed) == ("kept-index agreement", 1.0)


def test_another_token_passes_where_torch_parts_with_itself(tiny_checkpoint, monkeypatch):
    """A nudge so large that it is another image stands for scores so close that any nudge decides."""
    monkeypatch.setitem(vision.NUDGE, "fp32", 1.0)
    report = outcome(tiny_checkpoint, "cls-topk", one_other)
    check = report.checks[0]

    assert check.metric == "kept-index agreement"
    assert check.value == pytest.approx(15 / 16)
    assert check.threshold < check.value
    assert check.note.startswith("scores tie in 2 of 2 images")


def test_a_tie_excuses_no_more_than_torch_itself_shows(tiny_checkpoint, monkeypatch):
    monkeypatch.setitem(vision.NUDGE, "fp32", 1.0)
    report = outcome(
        tiny_checkpoint, "cls-topk", lambda index: np.array([i for i in range(64) if i not in index][:16])
    )

    assert "kept-index agreement" in {check.metric for check in report.failed}
