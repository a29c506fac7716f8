"""Towers without a CLS token: the features are transformers', and every method does what it says it does without one."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from checkpoints import SIGLIP, to_public_layout, write_siglip
from exhaustive import exhaustive
from reducer_cases import computed, expected, least_keep, random_inputs
from reference import merging
from reference import reducers as reference
from test_vision_graph import load, pixels_of, torch_module, vision_session
from transformers import LlavaForConditionalGeneration

import fico_export
from fico_export import models, reducers
from fico_export.bundle.manifest import Manifest
from fico_export.errors import CheckpointError, ConfigError
from fico_export.parity.prompts import pictures
from fico_export.parity.reference import Reference
from fico_export.reducers.base.cues import Cues
from fico_export.reducers.base.plan import Limits, make_plan
from fico_export.reducers.base.reducer import Depth, Reducer, Site
from fico_export.runtime.inputs.images import Pixels

# 27×27 = 729 patches and a rest of 2 pixels, as 384 is 27 · 14 + 6.
GRID27 = {"num_hidden_layers": 4, "image_size": 110, "patch_size": 4}
LAST_BUT_ONE = {"vision_feature_layer": -2}
LIMITS = Limits(64, 0, Depth(6, 5), Depth(2, 1), has_cls=False)


def acts_on_the_picture_alone(name):
    record = reducers.get(name)
    if name == "none" or not isinstance(record, Reducer) or record.site is Site.DECODER_LAYER:
        return False
    return not record.cues & {"prompt", "clip_text"}


METHODS = [name for name in reducers.names() if acts_on_the_picture_alone(name)]
OF_THE_TOWER = [
    name for name in METHODS if reducers.get(name).cues - {"valid"}
]  # the others see no difference


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """64 patches; features from the layer before the last, so that a layer follows them."""
    folder = tmp_path_factory.mktemp("siglip") / "tiny"
    return to_public_layout(write_siglip(folder, vision={"num_hidden_layers": 4}, llava=LAST_BUT_ONE))


@pytest.fixture(scope="module")
def grid27(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip") / "grid27"
    return write_siglip(folder, vision=GRID27, llava=LAST_BUT_ONE, seed=1)


def reach(method, keep, patches=64):
    """A budget that a tower of three layers can have: ToMe merges at most half of the tokens in each."""
    return max(keep, patches // 3) if method == "tome" else keep


@pytest.mark.parametrize("feature_layer", [-1, -2, 3, [-2, 3]], ids=str)
@pytest.mark.parametrize("public", [True, False], ids=["public layout", "saved by transformers 5"])
def test_the_tower_equals_that_of_transformers(feature_layer, public, tmp_path):
    folder = write_siglip(tmp_path / "checkpoint", llava={"vision_feature_layer": feature_layer})
    model = models.load(to_public_layout(folder) if public else folder)
    module, plain = torch_module(model, model.plan("none", None, {})), Reference(folder)
    for pixels in pixels_of(model, pictures(2)):
        with torch.inference_mode():
            features, index = module(torch.from_numpy(pixels))

        np.testing.assert_allclose(features[0], plain.image_features(Pixels(pixels, (1, 1)))[0], atol=1e-4)
        assert index.tolist() == [list(range(64))]


def test_a_side_with_a_rest_equals_that_of_transformers(grid27):
    model = load(grid27)
    pixels = pixels_of(model, pictures(1))[0]
    with torch.inference_mode():
        features, _ = torch_module(model, model.plan("none", None, {}))(torch.from_numpy(pixels))

    assert model.profile.patch_grid == (27, 27)
    assert pixels.shape == (1, 3, 110, 110)
    np.testing.assert_allclose(
        features[0], Reference(grid27).image_features(Pixels(pixels, (1, 1)))[0], atol=1e-4
    )


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_the_activation_is_the_checkpoints(activation, tmp_path):
    folder = write_siglip(tmp_path / "checkpoint", vision={"hidden_act": activation, "vision_use_head": True})
    model = models.load(folder)
    session = vision_session(model, model.plan("none", None, {}), tmp_path / "vision.onnx")
    pixels = pixels_of(model, pictures(1))[0]
    features, _ = session.run(None, {"pixel_values": pixels})

    np.testing.assert_allclose(
        features[0], Reference(folder).image_features(Pixels(pixels, (1, 1)))[0], atol=1e-4
    )


@pytest.mark.parametrize("keep", [1, 64, 728])
@pytest.mark.parametrize("method", METHODS)
def test_k_is_exact(method, keep, grid27):
    model = load(grid27)
    plan = model.plan(method, reach(method, keep, 729), {})
    with torch.inference_mode():
        features, index = torch_module(model, plan)(torch.from_numpy(pixels_of(model, pictures(1))[0]))

    assert features.shape == (1, plan.keep, 64)
    assert index.shape == (1, plan.keep)
    assert (index.diff(dim=1) > 0).all()
    assert index.min() >= 0
    assert index.max() < 729


# Those that only drop read the same stand-in for CLS as those that merge.
@pytest.mark.parametrize(
    "method", [m if m in ("ficoco-v", "prumerge", "tome") else exhaustive(m) for m in OF_THE_TOWER]
)
def test_onnx_runtime_equals_torch(method, siglip, tmp_path):
    model = load(siglip)
    plan = model.plan(method, reach(method, 16), {})
    session = vision_session(model, plan, tmp_path / "vision.onnx")
    module = torch_module(model, plan)
    for pixels in pixels_of(model, pictures(2)):
        features, index = session.run(None, {"pixel_values": pixels})
        with torch.inference_mode():
            want_features, want_index = module(torch.from_numpy(pixels))

        np.testing.assert_array_equal(index, want_index)
        np.testing.assert_allclose(features, want_features, atol=1e-4 * np.abs(features).max())


@pytest.mark.parametrize("method", METHODS)
def test_without_cls_a_method_equals_the_reference(method):
    for seed in range(3):
        inputs = random_inputs(seed, grid=(12, 11), channels=64, has_cls=False)
        keep = max(20, least_keep(method, 132, False))
        want_tokens, want_indices = expected(method, inputs, keep)
        got_tokens, got_indices = computed(method, inputs, keep)

        np.testing.assert_array_equal(got_indices[0], want_indices)
        np.testing.assert_allclose(got_tokens[0], want_tokens, atol=1e-4)


def test_the_stand_in_for_cls_is_the_attention_that_transformers_computes(siglip, photographs):
    model = load(siglip)
    module = torch_module(model, model.plan("cls-topk", 16, {}))
    tower = LlavaForConditionalGeneration.from_pretrained(
        siglip, dtype=torch.float32, attn_implementation="eager"
    ).model.vision_tower
    for pixels in map(torch.from_numpy, pixels_of(model, photographs)):
        with torch.inference_mode():
            attention = tower(pixels, output_attentions=True).attentions[2][
                0
            ]  # [H, N, N] of the last layer used
            _, index = module(pixels)
        received = attention.double().mean((0, 1)).numpy()

        assert index[0].tolist() == sorted(np.argsort(-received)[:16])


def test_no_row_of_a_tower_without_cls_is_kept_aside(siglip, monkeypatch):
    """Every cue of every site has a row for each live patch and none more; nothing of size 0 is left in the graph."""
    seen = []
    kept = Cues.kept

    def spy(self, indices):
        seen.append((self.has_cls, self.queries.shape[1], self.positions.shape[1], kept(self, indices)))
        return seen[-1][-1]

    monkeypatch.setattr(Cues, "kept", spy)
    model = load(siglip)
    plan = model.plan("ficoco-v@32,prumerge@20,g-prune@16", None, {})
    with torch.inference_mode():
        features, _ = torch_module(model, plan)(torch.from_numpy(pixels_of(model, pictures(1))[0]))

    assert plan.keep == features.shape[1] == 16
    assert len(seen) == len(plan.at(Site.ENCODER_LAYER).schedule) + 2
    for has_cls, rows, live, after in seen:
        assert not has_cls
        assert rows == live
        assert after.queries.shape[1] == after.positions.shape[1]
    assert not seen[-1][-1].following.has_cls


def test_ficoco_in_the_tower_equals_the_reference_on_photographs(siglip, photographs):
    model = load(siglip)
    plan = model.plan("ficoco-v", 16, {})
    module, plain = torch_module(model, plan), torch_module(model, model.plan("none", None, {}))
    for pixels in map(torch.from_numpy, pixels_of(model, photographs)):
        with torch.inference_mode():
            features, index = module(pixels)
            hidden, positions = plain.vision_tower.embed(pixels), np.arange(64)
            for i, layer in enumerate(plain.vision_tower.encoder.layers):
                hidden, queries, keys = layer.attend(hidden)
                if (left := plan.at(Site.ENCODER_LAYER).schedule.get(i)) is not None:
                    arrays = (t[0].double().numpy() for t in (hidden, queries, keys))
                    merged, chosen = reference.ficoco_v_layer(
                        *arrays,
                        heads=4,
                        positions=positions,
                        grid=(8, 8),
                        drop=hidden.shape[1] - left,
                        cls=False,
                    )
                    hidden, positions = torch.from_numpy(merged)[None].float(), positions[chosen]
                hidden = layer.feed_forward(hidden)
            want = plain.multi_modal_projector(hidden)[0].numpy()

        np.testing.assert_array_equal(index[0], positions)
        np.testing.assert_allclose(features[0], want, atol=1e-4 * np.abs(want).max())


def test_sizes_weigh_in_the_attention_that_follows(siglip):
    """Layer by layer in NumPy: a merged token draws as much attention as its patches did."""
    model = load(siglip)
    plan = model.plan("tome", 24, {})
    module = torch_module(model, plan)
    pixels = torch.from_numpy(pixels_of(model, pictures(1))[0])
    with torch.inference_mode():
        features, index = module(pixels)
        x, sizes, positions = (
            module.vision_tower.embed(pixels)[0].double(),
            torch.ones(64).double(),
            np.arange(64),
        )
        for i, layer in enumerate(module.vision_tower.encoder.layers.double()):
            normed, own = torch.nn.functional.layer_norm, layer.self_attn
            h = normed(x, (64,), layer.layer_norm1.weight, layer.layer_norm1.bias, layer.layer_norm1.eps)
            q, k, v = (
                p(h).unflatten(-1, (4, 16)).transpose(0, 1) for p in (own.q_proj, own.k_proj, own.v_proj)
            )
            weights = (q @ k.transpose(1, 2) / 4).exp() * sizes
            mixed = (weights / weights.sum(-1, keepdim=True)) @ v
            x = x + own.out_proj(mixed.transpose(0, 1).flatten(1))
            left = plan.at(Site.ENCODER_LAYER).schedule[i]
            tokens, chosen, counts = merging.tome_layer(
                x.numpy(), k.transpose(0, 1).flatten(1).numpy(), sizes.numpy(), 4, left, False
            )
            x, sizes, positions = (
                torch.from_numpy(tokens),
                torch.from_numpy(np.array(counts)),
                positions[chosen],
            )
            h = normed(x, (64,), layer.layer_norm2.weight, layer.layer_norm2.bias, layer.layer_norm2.eps)
            x = x + layer.mlp(h)
        want = module.multi_modal_projector.double()(x).numpy()

    np.testing.assert_array_equal(index[0], positions)
    np.testing.assert_allclose(features[0], want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("method", reducers.names())
def test_a_method_that_reads_cls_says_what_it_does_without(method):
    record = reducers.get(method)
    if isinstance(record, Reducer) and record.cues & {"cls_attention", "following"}:
        assert record.without_cls != "the same"


def test_a_method_that_cannot_do_without_cls_is_refused(monkeypatch):
    record = dataclasses.replace(reducers.get("cls-topk"), without_cls=None)
    monkeypatch.setattr(reducers, "get", lambda name: record)
    with pytest.raises(ConfigError, match="needs a tower with a CLS token") as caught:
        make_plan("cls-topk", 16, {}, LIMITS)

    assert "another method" in caught.value.fix
    assert make_plan("cls-topk", 16, {}, dataclasses.replace(LIMITS, has_cls=True)).keep == 16


def test_a_method_of_the_layer_after_the_features_needs_one(siglip, tmp_path):
    last = models.load(write_siglip(tmp_path / "checkpoint", llava={"vision_feature_layer": -1}))
    with pytest.raises(ConfigError, match="reads the layer after the features"):
        last.plan("prumerge", 16, {})

    assert load(siglip).plan("prumerge", 16, {}).keep == 16


def test_a_method_of_the_space_of_clip_is_refused(siglip):
    with pytest.raises(ConfigError, match="needs a tower with a CLS token"):
        load(siglip).plan("cdpruner", 16, {})


def test_the_strategy_that_drops_a_first_row_is_refused(tmp_path):
    folder = write_siglip(tmp_path / "checkpoint", llava={"vision_feature_select_strategy": "default"})
    with pytest.raises(CheckpointError, match="drops the first patch") as caught:
        models.load(folder)

    assert '"full"' in caught.value.fix


def test_positions_for_another_grid_are_refused(tmp_path):
    folder = write_siglip(tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = 2 * SIGLIP["image_size"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"position_embedding.*\[64, 64\].*\[256, 64\]"):
        models.load(folder)


@pytest.mark.parametrize(
    ("method", "keep"),
    [
        ("none", None),
        ("ficoco-v", 16),
        exhaustive("prumerge", 16),
        exhaustive("ficoco-vl", 16),
        ("mmtok", 16),
    ],
)
def test_an_export_passes_its_own_verification(method, keep, siglip, make_bundle):
    """`export` verifies what it wrote, and raises over a miss."""
    manifest = Manifest.load(make_bundle(siglip, keep, method=method))
    reduction = manifest.reduction

    assert reduction.visual_tokens == 64
    assert reduction.keep == (keep or 64)
    assert manifest.profile.aside == 0
    assert manifest.profile.token_grid == (8, 8)


def test_an_fp16_graph_is_close_to_torch(siglip, tmp_path):
    model = load(siglip)
    plan = model.plan("none", None, {})
    session = vision_session(model, plan, tmp_path / "vision.onnx", torch.float16)
    for pixels in pixels_of(model, pictures(2)):
        features, _ = session.run(None, {"pixel_values": pixels})
        with torch.inference_mode():
            want, _ = torch_module(model, plan)(torch.from_numpy(pixels))

        assert features.dtype == np.float16
        np.testing.assert_allclose(features, want, atol=1e-2 * float(want.abs().max()))


@pytest.mark.exhaustive  # its tower is above, and tests/runtime/test_greedy.py has a decoder of FP16
def test_an_fp16_export_passes_too(siglip, make_bundle):
    encoded = fico_export.load(make_bundle(siglip, 16, precision="fp16")).encode_image(pictures(1)[0])

    assert encoded.features.dtype == np.float16
    assert encoded.features.shape == (16, 64)
