"""Methods differ in the stages they compose: one's filter with another's compress is a few lines, and exports."""

import inspect
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import torch

from fico_export import models
from fico_export.devices import targets
from fico_export.exporter import checks, trace, weights
from fico_export.reducers.base.reducer import Reduction, Site
from fico_export.reducers.stages.compress import self_preserving
from fico_export.reducers.stages.correlate import pair, strongest
from fico_export.reducers.stages.filter import cosine_matrix
from fico_export.reducers.stages.select import mask_to_indices, take, top_mask


def hybrid(tokens, cues, keep, options):
    """ToMe's filter, a token of one half by its likeness to one of the other; FiCoCo's self-preserving compress."""
    n = tokens.shape[1]
    first = torch.arange(n) % 2 == int(cues.has_cls)
    likeness = cosine_matrix(cues.mean_keys()).masked_fill(~(first[:, None] & ~first), float("-inf"))
    merged = top_mask(likeness.amax(-1), n - keep)
    sources, targets = mask_to_indices(merged, n - keep), mask_to_indices(~merged, keep)
    partner = strongest(pair(likeness, sources, targets), 1).float()
    return Reduction(self_preserving(take(tokens, targets), take(tokens, sources), partner), targets)


def test_a_hybrid_of_two_methods_is_short_and_exports(shallow24_checkpoint, tmp_path):
    assert len(inspect.getsource(hybrid).splitlines()) < 10

    model, target = models.load(shallow24_checkpoint), targets.get(targets.DEFAULT)
    plan = model.plan("tome", 192, {})
    step = plan.at(Site.ENCODER_LAYER)
    own = replace(step, method="hybrid", reducer=replace(step.reducer, apply=hybrid))
    plan = replace(plan, method="hybrid", steps=(own,))
    graph = trace.trace(lambda: model.vision(plan, torch.float32), target.opset)
    graph.ir_version = target.ir_version
    weights.bind(graph, model.checkpoint, lambda text: None)
    trace.simplify(graph)
    weights.save(graph, tmp_path / "vision.onnx", lambda count: None)
    checks.check_graph(tmp_path / "vision.onnx", target, static=True)

    pixels = np.random.default_rng(0).standard_normal((1, 3, 96, 96), np.float32)
    features, index = ort.InferenceSession(str(tmp_path / "vision.onnx")).run(None, {"pixel_values": pixels})
    with torch.device("meta"):
        module = model.vision(plan, torch.float32)
    with torch.inference_mode():
        want_features, want_index = model.with_weights(module)(torch.from_numpy(pixels))

    assert features.shape == (1, 192, 64)
    np.testing.assert_array_equal(index, want_index)
    np.testing.assert_allclose(features, want_features, atol=1e-4 * np.abs(features).max())
    # The half that is never merged is there: CLS is row 0, so in the first layer that is every even patch.
    assert len(set(index[0].tolist())) == 192
