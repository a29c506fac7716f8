"""Shares of a budget among tiles: exactly K, and what is kept of each tile, or of several as one, is what NumPy keeps of them."""

import numpy as np
import pytest
import torch
from anyres_checkpoints import picture, write_next
from exhaustive import exhaustive
from reducer_cases import reads_the_picture_alone
from reference import greedy
from reference import reducers as reference

import fico_export
from fico_export import models, reducers
from fico_export.devices import targets
from fico_export.errors import InputError
from fico_export.exporter import trace, weights
from fico_export.options import ExportOptions
from fico_export.reducers.base.reducer import Reducer, Site
from fico_export.reducers.base.tiling import Tiling

SEEDS, SIZES = 50, [(200, 150), (260, 90), (57, 56)]
PATCHES = 16
METHODS = [name for name in reducers.names() if name != "none" and reads_the_picture_alone(name)]
OF_FEATURES = {
    "g-prune": lambda tokens, keep: reference.g_prune(tokens, keep)[1],
    "divprune": lambda tokens, keep: greedy.divprune(tokens, keep)[1],
    "cenprune": lambda tokens, keep: greedy.cenprune(tokens, keep)[1],
}


@pytest.fixture(scope="module")
def images():
    return {size: [picture(*size, seed) for seed in range(SEEDS)] for size in SIZES}


def encoded(bundle, images):
    """(tiles, pixels, kept tile by tile) of each image."""
    with fico_export.load(bundle) as vlm:
        for size, pictures in images.items():
            tiles = vlm.layout.profile(size).tiles
            for image in pictures:
                kept = vlm.encode_image(image)
                assert len(kept.features) == len(kept.keep_index) == vlm.manifest.reduction.keep
                yield tiles, vlm.preprocess(image), kept


def features_of(theirs, pixels):
    """[T, N, D], by transformers' tower and projector."""
    model = theirs.model.model
    with torch.no_grad():
        states = model.vision_tower(torch.from_numpy(pixels.values), output_hidden_states=True).hidden_states
        return model.multi_modal_projector(states[-2][:, 1:]).numpy().astype(np.float64)


@pytest.mark.parametrize("method", [exhaustive(m) if m == "g-prune" else m for m in OF_FEATURES])
def test_each_tile_keeps_its_share_as_numpy_does_over_fifty_seeds(
    make_bundle, checkpoint, theirs, images, method
):
    bundle = make_bundle(checkpoint, 23, method=method, verify=False)

    for tiles, pixels, kept in encoded(bundle, images):
        shares = [23 // tiles + (tile < 23 % tiles) for tile in range(tiles)]
        for tile, (share, features) in enumerate(zip(shares, features_of(theirs, pixels), strict=True)):
            mine = kept.keep_index[kept.keep_index // PATCHES == tile] - PATCHES * tile
            assert mine.tolist() == OF_FEATURES[method](features, share).tolist()


@pytest.mark.exhaustive
def test_ficoco_in_the_tower_merges_each_tile_as_numpy_does_over_fifty_seeds(
    make_bundle, checkpoint, theirs, images
):
    bundle = make_bundle(checkpoint, 23, method="ficoco-v", settings={"first_layer": 1}, verify=False)

    for tiles, pixels, kept in encoded(bundle, images):
        first = 0
        for tile in range(tiles):
            share = 23 // tiles + (tile < 23 % tiles)
            index, features = ficoco(theirs.model.model, pixels.values[[tile]], share)
            mine = slice(first, first + share)
            assert (kept.keep_index[mine] - PATCHES * tile).tolist() == index
            np.testing.assert_allclose(kept.features[mine], features, atol=2e-4)
            first += share


def ficoco(model, pixels, share):
    """One tile through transformers' layers, the reducer's reference between a layer's halves from layer 1 on."""
    tower = model.vision_tower
    layers = tower.encoder.layers[:3]
    with torch.no_grad():
        x = tower.pre_layrnorm(tower.embeddings(torch.from_numpy(pixels)))
        where = np.arange(PATCHES)
        drops = {1 + i: drop for i, drop in enumerate(reference.ficoco_v_schedule(PATCHES, share, 2))}
        for number, layer in enumerate(layers):
            normed = layer.layer_norm1(x)
            attention = layer.self_attn
            queries, keys = (part(normed)[0].numpy() for part in (attention.q_proj, attention.k_proj))
            x = x + attention(normed)[0]
            tokens, index = reference.ficoco_v_layer(
                x[0, 1:].numpy(),
                queries,
                keys,
                heads=4,
                positions=where,
                grid=(4, 4),
                drop=drops.get(number, 0),
            )
            where = where[index]
            x = torch.cat([x[:, :1], torch.from_numpy(tokens).to(torch.float32)[None]], dim=1)
            x = x + layer.mlp(layer.layer_norm2(x))
        return where.tolist(), model.multi_modal_projector(x[0, 1:]).numpy()


@pytest.mark.parametrize("method", ["g-prune", "divprune", "cenprune", "dpp", "dart"])
@pytest.mark.parametrize("tiling", ["joint", "split"])
def test_tiles_as_one_without_their_padding_keep_what_numpy_keeps_of_the_unpadded_rows(
    checkpoint, theirs, method, tiling, images
):
    """G-Prune's published protocol on this family: the whole image, and the unpadded grid as one, each to half of its tokens."""
    choose = OF_FEATURES.get(method) or (lambda tokens, keep: getattr(greedy, method)(tokens, keep)[1])
    model, base, vision = shaped(checkpoint, tiling=tiling, unpad=True, method=method), PATCHES // 2, {}

    for size, pictures in list(images.items()):
        layout = layout_of(model)
        valid = layout.valid(size)
        grid = int(valid[1:].sum())
        # What the paper's ratio of a half makes of this size.
        keep = base + grid // 2
        profile = layout.profile(size)
        plan = model.plan(
            method,
            keep,
            {},
            profile=profile,
            tiling=Tiling(tiling, base if tiling == "split" else None, True),
        )
        module = vision.setdefault((size, keep), torch_module(model, plan, profile))
        for image in pictures[:5]:
            pixels = layout.pixels(image, processor(model))
            features = features_of(theirs, pixels).reshape(-1, 64)
            where = np.flatnonzero(valid)
            if tiling == "joint":
                expected = where[choose(features[where], keep)].tolist()
            else:
                rest = where[where >= PATCHES]
                expected = [*choose(features[:PATCHES], base), *rest[choose(features[rest], keep - base)]]
            with torch.inference_mode():
                _, index = module(torch.from_numpy(pixels.values), torch.from_numpy(valid.astype(np.int64)))
            assert index[0].tolist() == [int(i) for i in expected]


def test_what_the_paper_keeps_of_a_usual_image_is_kept_by_its_bundle(make_bundle, checkpoint, theirs):
    """The same through ONNX Runtime, newlines besides: transformers' packed rows, of which half a tile and half the grid is left."""
    size = (200, 150)
    bundle = make_bundle(
        checkpoint, 8 + 24, method="g-prune", tiling="split", base_keep=8, unpad=True, newlines="all"
    )
    with fico_export.load(bundle) as vlm:
        kept = vlm.encode_image(picture(*size, 7))
        valid = np.flatnonzero(vlm.layout.valid(size))
        features = features_of(theirs, vlm.preprocess(picture(*size, 7))).reshape(-1, 64)
        with pytest.raises(
            InputError, match="so thin that 0 tokens of 4 tiles show it, and 24 are to be kept"
        ):
            vlm.encode_image(picture(500, 50))
    rest = valid[valid >= PATCHES]
    expected = [*reference.g_prune(features[:16], 8)[1], *rest[reference.g_prune(features[rest], 24)[1]]]

    assert len(rest) == 48
    assert kept.keep_index.tolist() == [int(i) for i in expected]
    assert len(kept.block.ids) == 32 + 6  # six rows of the unpadded grid, each with its newline


# Every method that acts before the decoder, at a fifth of its budget a tile: in every run, one of each site and one that reads the
# layer after. Those of OF_FEATURES are shown above, and each one's graph of a single tile in tests/export/test_vision_graph.py.
IN_EVERY_RUN = ("uniform", "ficoco-v", "prumerge", "dpp")


@pytest.mark.parametrize("method", [m if m in IN_EVERY_RUN else exhaustive(m) for m in METHODS])
def test_every_method_keeps_exactly_k_and_onnx_runtime_equals_torch(shared, tmp_path, method):
    import onnxruntime as ort

    keep = 5 * 32 if method in ("tome", "vispruner") else 5 * 16
    model = shaped(shared("next-64", lambda folder: write_next(folder, side=112)), method=method)
    plan, target = model.plan(method, keep, {}), targets.get("portable")
    graph = trace.trace(lambda: model.vision(plan, torch.float32), target.opset)
    graph.ir_version = target.ir_version
    weights.bind(graph, model.checkpoint, lambda text: None)
    trace.simplify(graph)
    weights.save(graph, tmp_path / "vision.onnx", lambda count: None)
    session = ort.InferenceSession(str(tmp_path / "vision.onnx"))
    pixels = layout_of(model).pixels(picture(400, 300, 5), processor(model)).values
    features, index = session.run(None, {"pixel_values": pixels})
    with torch.inference_mode():
        want, want_index = torch_module(model, plan, model.profile)(torch.from_numpy(pixels))

    assert features.shape == (1, keep, 64)
    assert (np.diff(index[0]) > 0).all()
    assert np.bincount(index[0] // 64).tolist() == [keep // 5] * 5
    shared_rows, got, theirs = np.intersect1d(index[0], want_index[0].numpy(), return_indices=True)
    assert len(shared_rows) >= (keep / 2 if method == "vispruner" else keep)
    np.testing.assert_allclose(features[0][got], want[0][theirs], atol=2e-4 * float(want.abs().max()))


def test_the_base_has_its_own_share_and_a_chain_falls_tile_by_tile(checkpoint):
    model = shaped(checkpoint, base_keep=10, method="cls-topk@60,divprune@40")
    plan = model.plan("cls-topk@60,divprune@40", None, {})

    assert plan.shares() == [(1, 10), (1, 8), (1, 8), (1, 7), (1, 7)]
    assert [(group.tiles, [step.keep for step in group.steps]) for group in plan.groups] == [
        (1, [15, 10]), (1, [12, 8]), (1, [11, 8]), (2, [11, 7]),
    ]  # fmt: skip
    assert [(step.before, step.keep) for step in plan.steps] == [(80, 60), (60, 40)]


def test_methods_that_tell_padding_say_so(checkpoint):
    masking = {n for n in reducers.names() if isinstance(r := reducers.get(n), Reducer) and "valid" in r.cues}

    assert masking == {"cenprune", "cls-topk", "dart", "divprune", "dpp", "g-prune"}
    assert all(reducers.get(name).site is not Site.DECODER_LAYER for name in masking)


def shaped(checkpoint, **options):
    return models.load(checkpoint).shaped(ExportOptions.of(options))


def layout_of(model):
    from fico_export.runtime.inputs.layout import Layout

    return Layout(model.layout, models.load(model.folder).profiles, "original", model.tokens.image_id)


def processor(model):
    from fico_export.runtime.inputs.preprocess import ImageProcessor

    return ImageProcessor.from_config(model.files().preprocessor)


def torch_module(model, plan, profile):
    with torch.device("meta"):
        module = model.vision(plan, torch.float32, profile=profile)
    return model.with_weights(module)
