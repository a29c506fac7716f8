"""Reduced images of equal tiles: transformers' decoder on the rows that are left, and cells that leave the tower whole."""

import numpy as np
import pytest
import tiled_reference
import torch
from anyres_checkpoints import picture
from exhaustive import exhaustive
from reference import greedy
from reference.layer_by_layer import through_layers

import fico_export
from fico_export.parity.reference import ReducedReference
from fico_export.runtime.backends.base import Step
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.sampling import GREEDY

QUESTION = "What is it?"
SIZES = {"1": (200, 150), "3x4": (200, 150), "2x2": (230, 229)}  # of images that take these grids


def divprune(theirs, tile, keep):
    features = theirs.features(tile[None])[0]
    index = greedy.divprune(features, keep)[1]
    return features[index], index


def joint(theirs, tiles, keep):
    features = theirs.features(tiles).reshape(len(tiles) * theirs.kind.a_tile, -1)
    index = greedy.divprune(features, keep)[1]
    return features[index], index


def tile_by_tile(method, theirs, tiles, keep):
    """Each tile by itself, the first with one more where the budget is uneven."""
    shares = [keep // len(tiles) + (i < keep % len(tiles)) for i in range(len(tiles))]
    parts = [method(theirs, tile, share) for tile, share in zip(tiles, shares, strict=True)]
    features, index = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(
        [kept + i * theirs.kind.a_tile for i, kept in enumerate(index)]
    )


METHODS = {
    "divprune": divprune,
    "tome": tiled_reference.tome,
    "ficoco-v": tiled_reference.ficoco,
    "cls-topk": tiled_reference.cls_topk,
}
SETTINGS = {"ficoco-v": {"first_layer": 1}}


@pytest.mark.parametrize("keep", [11, exhaustive(9), exhaustive(15)])
@pytest.mark.parametrize("method", ["tome", "ficoco-v", "cls-topk"])
def test_whole_cells_leave_the_tower_as_numpy_has_it(tiled, method, keep):
    """Without a CLS token and with one."""
    tiles = tiled.theirs.pixels(picture(200, 150, 8))[:4]
    with torch.inference_mode():
        found, index = tiled.module("1", method, keep, SETTINGS.get(method))(torch.from_numpy(tiles))

    for tile, features, kept in zip(tiles, found, index, strict=True):
        expected, cells = METHODS[method](tiled.theirs, tile, keep)
        assert kept.tolist() == cells.tolist()
        np.testing.assert_allclose(features, expected, atol=5e-5)


@pytest.mark.parametrize("method", ["ficoco-v", "divprune"])
def test_tiles_of_unequal_shares_lose_their_cells_each_by_itself(tileds, method):
    tiled = tileds("internvl")
    tiles = tiled.theirs.pixels(picture(*SIZES["2x2"], 8))
    with torch.inference_mode():
        module = tiled.module("2x2", method, 48, SETTINGS.get(method))
        found, index = module(torch.from_numpy(tiles))
    expected, cells = tile_by_tile(METHODS[method], tiled.theirs, tiles, 48)

    assert len(tiles) == 5
    assert index[0].tolist() == cells.tolist()
    np.testing.assert_allclose(found[0], expected, atol=5e-5)


def prompt(tiled, images, features, index, positions, single):
    """(embeddings [S, C], positions [S]) of a prompt about images of which an index is left; text between tiles stays."""
    fed = tiled.theirs.inputs((images, QUESTION), single=single)
    ids, token = fed["input_ids"][0], tiled.model.tokens.image_id
    embeds = tiled.theirs.model.get_input_embeddings()(ids).detach().numpy().copy()
    stays = np.ones(len(ids), bool)
    for rows, of_image, kept in zip(
        np.flatnonzero(ids.numpy() == token).reshape(len(images), -1), features, index, strict=True
    ):
        embeds[rows[kept]] = of_image
        stays[np.delete(rows, kept)] = False
    places = np.flatnonzero(stays)
    after = len(ids)
    if positions == "compact":
        places, after = np.arange(len(places)), len(places)
    return embeds[stays], places, after


CASES = {
    "SmolVLM, 13 tiles as one": ("smolvlm", "divprune", 60, "3x4", "joint"),
    "SmolVLM, 13 tiles": ("smolvlm", "divprune", 54, "3x4", "per-tile"),
    "SmolVLM, merged": ("smolvlm", "tome", 11, "1", None),
    "InternVL, cells of a tile": ("internvl", "ficoco-v", 11, "1", None),
    "InternVL, 5 tiles as one": ("internvl", "divprune", 30, "2x2", "joint"),
    "InternVL, merged": ("internvl", "tome", 11, "1", None),
}


@pytest.mark.parametrize(
    ("case", "positions"),
    [
        ("SmolVLM, 13 tiles as one", "original"),
        exhaustive("SmolVLM, 13 tiles as one", "compact"),
        exhaustive("SmolVLM, 13 tiles", "original"),
        ("SmolVLM, merged", "compact"),
        exhaustive("SmolVLM, merged", "original"),
        ("InternVL, cells of a tile", "original"),
        ("InternVL, 5 tiles as one", "compact"),
        exhaustive("InternVL, 5 tiles as one", "original"),
        exhaustive("InternVL, merged", "original"),
    ],
)
def test_logits_are_those_of_transformers_on_what_is_left(make_bundle, tileds, case, positions):
    """The export verifies itself too: of one tile, and of several with text between them."""
    name, method, keep, profile, tiling = CASES[case]
    tiled, single = tileds(name), profile == "1"
    images = [picture(*SIZES[profile], 5), picture(*SIZES[profile], 6)]
    tiles = [tiled.theirs.pixels(image, single=single) for image in images]
    whole = joint if tiling == "joint" else lambda *given: tile_by_tile(METHODS[method], *given)
    features, index = zip(*(whole(tiled.theirs, shown, keep) for shown in tiles), strict=True)
    embeds, places, after = prompt(tiled, images, features, index, positions, single)
    bundle = make_bundle(
        tiled.folder,
        keep,
        method=method,
        settings=SETTINGS.get(method),
        positions=positions,
        profile=profile,
        tiling=tiling,
        verify=single or name == "smolvlm",
    )
    with fico_export.load(bundle) as vlm:
        kept = [vlm.encode_image(image) for image in images]
        ids = vlm.formatter.encode([Message("user", QUESTION, 2)])
        rows = vlm.layout.lay_out(ids, kept).rows(vlm.embed, kept)
        (logits,) = vlm.decoder.step([Step(vlm.decoder.new_cache(), *rows)])
        answer = vlm.generate(QUESTION, images, max_new_tokens=4, sampling=GREEDY)

    for mine, expected in zip(kept, index, strict=True):
        assert mine.keep_index.tolist() == expected.tolist()
    assert rows.positions.tolist() == [places.tolist()]
    np.testing.assert_allclose(rows.embeds, embeds, atol=1e-4)
    np.testing.assert_allclose(logits, tiled.theirs.logits(embeds, places)[-1], atol=1e-4)
    assert answer.prompt_tokens == len(embeds)
    assert answer.token_ids == said(tiled, embeds, places, after)


def said(tiled, embeds, places, after, count=4):
    """The greedy answer, each token by a run of all that is before it."""
    tokens, table = [], tiled.theirs.model.get_input_embeddings().weight.detach().numpy()
    for step in range(count):
        tokens.append(int(tiled.theirs.logits(embeds, places)[-1].argmax()))
        embeds = np.concatenate([embeds, table[tokens[-1:]]])
        places = np.append(places, after + step)
    return tokens


def test_text_between_tiles_stays_where_it_stood(tiled):
    """Of SmolVLM all of it; of InternVL what stands around the tiles. Only visual tokens are left out."""
    name = {"smolvlm": "3x4", "internvl": "2x2"}[tiled.name]
    layout, size = tiled.layout(name), SIZES[name]
    whole, total = layout.whole(size), layout.features(size)
    left = layout.place(size, np.array([0, total - 1]))

    text = whole.visual < 0
    assert left.ids[left.visual < 0].tolist() == whole.ids[text].tolist()
    assert (
        left.offsets[0].tolist()
        == np.flatnonzero(text | (whole.visual == 0) | (whole.visual == total - 1)).tolist()
    )
    assert left.span == len(whole.ids)
    assert text.sum() == (30 if tiled.name == "smolvlm" else 2)


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("smolvlm", "1"),
        ("smolvlm", "3x4"),
        ("internvl", "1"),
        exhaustive("internvl", "2x2"),
        ("internvl-qwen3", "1"),
    ],
)
def test_a_method_in_the_decoder_leaves_what_transformers_layers_leave(tileds, name, profile):
    """Of one tile, and of several with text between them, which stays."""
    tiled, image, single = tileds(name), picture(*SIZES[profile], 5), profile == "1"
    model = tiled.shaped(profile, method="fastv")
    tiles = tiled.theirs.pixels(image, single=single)
    features = tiled.theirs.features(tiles).reshape(-1, 64)
    embeds, places, _ = prompt(tiled, [image], [features], [np.arange(len(features))], "original", single)
    ids = tiled.theirs.inputs(([image], QUESTION), single=single)["input_ids"][0].numpy()
    visual = np.flatnonzero(ids == tiled.model.tokens.image_id)
    keep = 5 * len(tiles)
    reduced = ReducedReference(model, model.plan("fastv", keep, {"layer": 1}))
    logits = reduced.begin(embeds, places[None], visual)
    with tiled.theirs.weights_shown() as theirs:
        expected, kept, _ = through_layers(theirs, "fastv", torch.from_numpy(embeds), visual, {0: keep})

    assert reduced.kept.tolist() == kept.tolist()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (np.diff(visual) > 1).any() == (name == "smolvlm" and profile != "1")
