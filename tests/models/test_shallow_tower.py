"""A tower of few layers: the one that a method also reads can be the last."""

import torch
from checkpoints import write_tiny

from fico_export import models
from fico_export.reducers.base.cues import Cues


def test_the_earlier_layer_can_be_the_last(tmp_path, monkeypatch):
    seen = []
    received = Cues.received
    monkeypatch.setattr(Cues, "received", lambda cues: seen.append(received(cues)) or seen[-1])
    model = models.load(write_tiny(tmp_path, vision={"num_hidden_layers": 3}))
    with torch.device("meta"):
        module = model.vision(model.plan("hiprune", 16, {"alpha": 0.5}), torch.float32)

    with torch.inference_mode():
        features, index = model.with_weights(module)(torch.randn(1, *model.profile.input_shape[1:]))

    assert features.shape[1] == index.shape[1] == 16
    assert index[0].tolist() == sorted(set(index[0].tolist()))
    torch.testing.assert_close(*seen)  # what the last layer attends to, and what the earlier does
