"""The vision graph on a 24×24 tower: K is exact, ONNX Runtime equals torch, nothing is dynamic."""

from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from exhaustive import ALIKE, exhaustive
from reducer_cases import reads_the_picture_alone
from reference import greedy
from reference import reducers as reference
from reference.objectives import OBJECTIVES, Picture
from scipy.stats import spearmanr

from fico_export import demo, models, reducers
from fico_export.devices import targets
from fico_export.errors import ConfigError
from fico_export.exporter import checks, trace, weights
from fico_export.exporter.lint import lint
from fico_export.parity.prompts import pictures
from fico_export.reducers.base.reducer import Site
from fico_export.runtime.inputs.preprocess import ImageProcessor

BUDGETS = (1, 2, 16, 33, 64, 128, 192, 575, 576)
METHODS = [name for name in reducers.names() if name != "none" and reads_the_picture_alone(name)]
# Rounding decides on much of what they keep: one goes by the order of close scores, the other by squares of small cosines.
# That each of their decisions is right is tested where the inputs are equal, in tests/reducers.
CHAOTIC = {"vispruner", "dpp"}


@cache
def load(checkpoint: Path):
    return models.load(checkpoint)


def torch_module(model, plan):
    with torch.device("meta"):
        module = model.vision(plan, torch.float32)
    return model.with_weights(module)


def vision_session(model, plan, path, dtype=torch.float32):
    """Export the vision graph alone, check it, open it."""
    target = targets.get("portable")
    graph = trace.trace(lambda: model.vision(plan, dtype), target.opset)
    graph.ir_version = target.ir_version
    weights.bind(graph, model.checkpoint, lambda text: None)
    trace.simplify(graph)
    weights.save(graph, path, lambda count: None)
    checks.check_graph(path, target, static=True)
    graph = ir.load(path)
    assert not [v for name in targets.names() for v in lint(graph, targets.get(name))]
    return ort.InferenceSession(str(path))


def pixels_of(model, images):
    processor = ImageProcessor.from_config(model.files().preprocessor)
    return [processor(image) for image in images]


@pytest.mark.parametrize("method", METHODS)
def test_k_is_exact_at_every_budget(method, grid24_checkpoint):
    model = load(grid24_checkpoint)
    pixels = torch.from_numpy(pixels_of(model, pictures(1))[0])
    for keep in BUDGETS:
        if keep < within_reach(method, keep):
            with pytest.raises(ConfigError):
                model.plan(method, 16, {})
            continue
        with torch.inference_mode():
            features, index = torch_module(model, model.plan(method, keep, {}))(pixels)

        assert features.shape == (1, keep, 64)
        assert index.shape == (1, keep)
        assert (index.diff(dim=1) > 0).all()
        assert index.min() >= 0
        assert index.max() < 576


# Dropping a single token is another case only where something is merged; of FiCoCo the schedule too has a case of its own.
ONE_LESS = [m for m in METHODS if reducers.get(m).compress != "–"]


@pytest.mark.parametrize(
    ("method", "keep"),
    [
        *((m, 64) for m in METHODS),
        *((m, 575) if m == "ficoco-v" else exhaustive(m, 575) for m in ONE_LESS),
    ],
)
def test_onnx_runtime_equals_torch(method, keep, shallow24_checkpoint, tmp_path):
    if method == "dpp":  # this tower has 64 channels: beyond the 64th token, each is the others' combination
        keep = 32
    if method == "vispruner":  # one round for every eight dropped, each a part of the graph
        keep = max(keep, 512)
    model = load(shallow24_checkpoint)
    plan = model.plan(method, within_reach(method, keep), {})
    session = vision_session(model, plan, tmp_path / "vision.onnx")
    module = torch_module(model, plan)
    for pixels in pixels_of(model, pictures(2)):
        features, index = session.run(None, {"pixel_values": pixels})
        with torch.inference_mode():
            want_features, want_index = module(torch.from_numpy(pixels))
        _, got, want = np.intersect1d(index[0], want_index[0], return_indices=True)

        assert features.shape == (1, plan.keep, 64)
        if method == "vispruner":  # half of K by attention; of the others the features' last digit decides
            assert len(got) >= plan.keep / 2
        else:
            np.testing.assert_array_equal(index, want_index)
        np.testing.assert_allclose(
            features[0][got], want_features[0][want], atol=1e-4 * np.abs(features).max()
        )


def within_reach(method: str, keep: int) -> int:
    """A budget that a tower of three layers or more can have: ToMe merges at most half of the tokens in each."""
    return max(keep, 192) if method == "tome" else keep


@pytest.mark.parametrize("method", METHODS)
def test_keeping_all_tokens_changes_nothing(method, grid24_checkpoint):
    model = load(grid24_checkpoint)
    pixels = torch.from_numpy(pixels_of(model, pictures(1))[0])
    with torch.inference_mode():
        everything, index = torch_module(model, model.plan("none", None, {}))(pixels)
        kept, kept_index = torch_module(model, model.plan(method, 576, {}))(pixels)

    assert torch.equal(index, kept_index)
    torch.testing.assert_close(kept, everything, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep", [64, 192])
def test_ficoco_in_the_tower_equals_the_reference_on_photographs(keep, grid24_checkpoint, photographs):
    """Layer by layer: torch's attention and MLP, the reducer in NumPy float64 between them."""
    model = load(grid24_checkpoint)
    plan = model.plan("ficoco-v", keep, {})
    module = torch_module(model, plan)
    plain = torch_module(model, model.plan("none", None, {}))
    for pixels in pixels_of(model, photographs):
        with torch.inference_mode():
            features, index = module(torch.from_numpy(pixels))
            want_features, want_index = ficoco_tower_in_numpy(
                plain, plan.at(Site.ENCODER_LAYER).schedule, torch.from_numpy(pixels)
            )

        np.testing.assert_array_equal(index[0], want_index)
        np.testing.assert_allclose(features[0], want_features, atol=1e-4 * np.abs(want_features).max())


def ficoco_tower_in_numpy(module, schedule, pixels):
    tower = module.vision_tower
    hidden, positions = tower.embed(pixels), np.arange(576)
    for i, layer in enumerate(tower.encoder.layers):
        hidden, queries, keys = layer.attend(hidden)
        if i in schedule:
            arrays = (t[0].double().numpy() for t in (hidden[:, 1:], queries, keys))
            kept, index = reference.ficoco_v_layer(
                *arrays, heads=4, positions=positions, grid=(24, 24), drop=hidden.shape[1] - 1 - schedule[i]
            )
            positions = positions[index]
            hidden = torch.cat([hidden[:, :1], torch.from_numpy(kept)[None].float()], dim=1)
        hidden = layer.feed_forward(hidden)
    return module.multi_modal_projector(hidden[:, 1:])[0].numpy(), positions


def test_g_prune_after_the_projector_equals_the_reference_on_photographs(grid24_checkpoint, photographs):
    model = load(grid24_checkpoint)
    module = torch_module(model, model.plan("g-prune", 64, {}))
    plain = torch_module(model, model.plan("none", None, {}))
    for pixels in map(torch.from_numpy, pixels_of(model, photographs)):
        with torch.inference_mode():
            features, index = module(pixels)
            projected = plain(pixels)[0][0].double().numpy()
        want_features, want_index = reference.g_prune(projected, 64)

        np.testing.assert_array_equal(index[0], want_index)
        np.testing.assert_allclose(features[0], want_features, atol=1e-4)


@contextmanager
def watched_projector(module):
    """What goes into the projector while this lasts: [B, n, C] of each call."""
    given = []
    hook = module.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    yield given
    hook.remove()


def whole_pictures(model, all_pixels):
    """All tokens of each image, before and after the projector, and its sensitivity to them."""
    module = torch_module(model, model.plan("none", None, {}))
    with torch.inference_mode(), watched_projector(module) as given:
        after = [module(torch.from_numpy(pixels))[0] for pixels in all_pixels]
        rows = [
            (x, y, module.multi_modal_projector.sensitivity(x)) for x, y in zip(given, after, strict=True)
        ]
    return [Picture(*(t[0].double().numpy() for t in row)) for row in rows]


def test_zooprune_in_the_tower_equals_the_reference_on_photographs(photographs):
    model = load(demo.FOLDER)
    module = torch_module(model, model.plan("zooprune", 64, {}))
    first, second = module.multi_modal_projector.linear_1, module.multi_modal_projector.linear_2
    layers = [t.detach().double().numpy() for t in (first.weight, first.bias, second.weight)]
    all_pixels = pixels_of(model, photographs)
    for pixels, picture in zip(all_pixels, whole_pictures(model, all_pixels), strict=True):
        with torch.inference_mode():
            features, index = module(torch.from_numpy(pixels))
        sensitivity = greedy.jacobian_sensitivity(picture.before, *layers, greedy.gelu_slope)
        want_features, want_index = greedy.zooprune(picture.after, picture.sensitivity, 64)

        np.testing.assert_allclose(picture.sensitivity, sensitivity, rtol=5e-4)
        np.testing.assert_array_equal(index[0], want_index)
        np.testing.assert_allclose(features[0], want_features, atol=1e-4 * np.abs(want_features).max())


def test_the_sensitivity_orders_tokens_as_passes_along_random_directions_do(photographs):
    """The published definition, 128 passes of a trained projector."""
    model = load(demo.FOLDER)
    projector = torch_module(model, model.plan("none", None, {})).multi_modal_projector.double()

    def project(x):
        with torch.inference_mode():
            return projector(torch.from_numpy(x)).numpy()

    for picture in whole_pictures(model, pixels_of(model, photographs)):
        published = greedy.difference_sensitivity(picture.before, project)

        assert np.corrcoef(picture.sensitivity, published)[0, 1] >= 0.97
        assert spearmanr(picture.sensitivity, published).statistic >= 0.95


def in_fp16(method: str) -> bool:
    """Whether a method's graph has what another's in FP16 has not: it merges by operators of its own, or is one of the others.

    PruMerge's weighted sums are FiCoCo's, without their mean; ToMe's too, and its FP16 graph is compiled in every run.
    """
    return method == "dpp" or (
        reducers.get(method).compress != "–" and method not in {*ALIKE, "prumerge", "tome"}
    )


@pytest.mark.parametrize("method", [m if in_fp16(m) else exhaustive(m) for m in METHODS])
def test_fp16_graphs_stay_close_to_fp32_torch_on_photographs(method, photographs, tmp_path):
    """On a trained tower: each way to merge, and one of the methods that only drop, which score in FP32. Of what chooses greedily, what the kept tokens are worth too."""
    model = load(demo.FOLDER)
    # In these five layers as many are merged in each as, of 576 on the way to 64, in the 23 of a real tower.
    plan = model.plan(method, 466 if method == "tome" else 64, {})
    session = vision_session(model, plan, tmp_path / "vision.onnx", torch.float16)
    module = torch_module(model, plan)
    all_pixels = pixels_of(model, photographs)
    wholes = whole_pictures(model, all_pixels) if method in OBJECTIVES else [None] * len(all_pixels)
    overlaps, cosines, worths = [], [], []
    for pixels, picture in zip(all_pixels, wholes, strict=True):
        features, index = session.run(None, {"pixel_values": pixels})
        with torch.inference_mode():
            want_features, want_index = (t[0].numpy() for t in module(torch.from_numpy(pixels)))
        shared, got, want = np.intersect1d(index[0], want_index, return_indices=True)
        a, b = features[0][got].astype(np.float64), want_features[want]
        overlaps.append(len(shared) / plan.keep)
        cosines.append((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
        if picture:
            worths.append([OBJECTIVES[method](picture, kept) for kept in (index[0], want_index)])
        assert features.dtype == np.float16

    if method not in CHAOTIC:
        assert np.mean(overlaps) >= 0.95
        assert min(overlaps) >= 0.9
    # Where two targets nearly tie, FP16 may merge a token into the other one: a few rows then differ.
    assert (np.concatenate(cosines) >= 0.99).mean() >= 0.95
    if worths:
        fp16, fp32 = np.sum(worths, axis=0)
        assert abs(fp16 / fp32 - 1) <= 0.01


def test_nodes_carry_the_names_of_their_modules_and_no_paths(shallow24_checkpoint, tmp_path):
    model = load(shallow24_checkpoint)
    vision_session(model, model.plan("ficoco-v", 64, {}), tmp_path / "vision.onnx")
    graph = ir.load(tmp_path / "vision.onnx").graph
    names = [node.name for node in graph]

    assert any(name.startswith("vision_tower.encoder.layers.2.self_attn") for name in names)
    assert any(name.startswith("reduce.layer_2/") for name in names)
    assert len(set(names)) == len(names)
    assert b".py" not in (tmp_path / "vision.onnx").read_bytes()


def test_the_projector_runs_on_the_kept_tokens_alone(shallow24_checkpoint, tmp_path):
    model = load(shallow24_checkpoint)
    for method in ("ficoco-v", "pool", "divprune"):
        rows = 576 if reducers.get(method).site is Site.PROJECTOR_OUTPUT else 64
        plan = model.plan(method, 64, {})
        graph = trace.trace(partial(model.vision, plan, torch.float32), 18)
        linear = next(n for n in graph.graph if n.name.startswith("multi_modal_projector.linear_1/MatMul"))

        assert list(linear.outputs[0].shape or linear.inputs[0].shape)[1] == rows, method
