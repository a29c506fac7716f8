"""Reduced images of Qwen-VL: transformers' decoder on the rows that are left, at the places and with the planes that they had."""

import numpy as np
import pytest
import qwen_reference
import torch
from anyres_checkpoints import picture
from exhaustive import exhaustive
from reference import greedy

import fico_export
from fico_export.parity.reference import ReducedReference
from fico_export.runtime.backends.base import Step
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.sampling import GREEDY

QUESTION = "What is it?"
CELLS, KEEP, OFF = (3, 5), 7, (6, -5)  # of Qwen2.5-VL's windows some are ragged


def dropped(qwen, image):
    features, planes = qwen.theirs.features(image)
    index = greedy.divprune(features, KEEP)[1]
    return features[index], None if planes is None else planes[:, index], index


def merged(qwen, image):
    return qwen_reference.tome(qwen.theirs, image, KEEP)


METHODS = {"divprune": dropped, "tome": merged}


@pytest.fixture(scope="module")
def image(qwen):
    return picture(*qwen.kind.size(*CELLS, OFF), 5)


def prompt(qwen, images, features, planes, index, positions):
    """(embeddings [S, C], positions [3, S], planes [L, S, C], next position) of a prompt about images of which an index is left."""
    fed = qwen.theirs.inputs((images, QUESTION))
    ids, token = fed["input_ids"][0], qwen.model.tokens.image_id
    embeds = qwen.theirs.model.get_input_embeddings()(ids).detach().numpy().copy()
    at = np.flatnonzero(ids.numpy() == token).reshape(len(images), -1)
    assert at.shape[1] == CELLS[0] * CELLS[1]
    stays = np.ones(len(ids), bool)
    added = None if planes[0] is None else np.zeros((qwen.kind.planes, *embeds.shape), np.float32)
    for rows, of_image, plane, kept in zip(at, features, planes, index, strict=True):
        embeds[rows[kept]] = of_image
        stays[np.delete(rows, kept)] = False
        if added is not None:
            added[:, rows[kept]] = plane
    places = qwen.theirs.positions(fed)
    after = places.max() + 1
    places = places[:, stays]
    if positions == "compact":
        places, after = np.tile(np.arange(stays.sum()), (3, 1)), stays.sum()
    return embeds[stays], places, None if added is None else added[:, stays], int(after)


@pytest.mark.parametrize("cells", [CELLS, (4, 4)])
def test_cells_and_planes_are_merged_by_the_weights_of_numpy(qwen, cells):
    image, model = (
        picture(*qwen.kind.size(*cells), 5),
        qwen.shaped(qwen.kind.resolution(*cells), method="tome"),
    )
    with torch.device("meta"):
        module = model.vision(model.plan("tome", KEEP, {}), torch.float32, profile=model.profile)
    with torch.inference_mode():
        found, index, *planes = model.with_weights(module)(torch.from_numpy(qwen.theirs.pixels(image))[None])
    features, added, cells_left = merged(qwen, image)

    assert index[0].tolist() == cells_left.tolist()
    np.testing.assert_allclose(found[0], features, atol=2e-5)
    assert len(planes) == (added is not None)
    if added is not None:
        np.testing.assert_allclose(planes[0][0], added, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "method", "positions"),
    [
        *(
            (family, "divprune", kind)
            for family in ("qwen2_5_vl", "qwen3_vl")
            for kind in ("original", "compact")
        ),
        ("qwen3_vl", "tome", "original"),
        exhaustive("qwen3_vl", "tome", "compact"),
        *(exhaustive("qwen2_5_vl", "tome", kind) for kind in ("original", "compact")),
    ],
)
def test_logits_are_those_of_transformers_on_what_is_left(make_bundle, qwens, family, method, positions):
    qwen = qwens(family)
    image = picture(*qwen.kind.size(*CELLS, OFF), 5)
    bundle = make_bundle(
        qwen.folder,
        KEEP,
        method=method,
        positions=positions,
        resolution=qwen.kind.resolution(*CELLS),
        verify=False,
    )
    images = [image, picture(*qwen.kind.size(*CELLS), 6)]
    features, planes, index = zip(*(METHODS[method](qwen, shown) for shown in images), strict=True)
    embeds, places, added, after = prompt(qwen, images, features, planes, index, positions)
    with fico_export.load(bundle) as vlm:
        kept = [vlm.encode_image(shown) for shown in images]
        rows = vlm.layout.lay_out(vlm.formatter.encode([Message("user", QUESTION, 2)]), kept).rows(
            vlm.embed, kept
        )
        (logits,) = vlm.decoder.step([Step(vlm.decoder.new_cache(), *rows)])
        answer = vlm.generate(QUESTION, images, max_new_tokens=4, sampling=GREEDY)

    for mine, expected in zip(kept, index, strict=True):
        assert mine.keep_index.tolist() == expected.tolist()
    np.testing.assert_array_equal(rows.positions, places)
    np.testing.assert_allclose(rows.embeds, embeds, atol=1e-4)
    assert (rows.planes is None) == (added is None)
    if added is not None:
        np.testing.assert_allclose(rows.planes, added, atol=1e-4)
    np.testing.assert_allclose(logits, qwen.theirs.logits(embeds, places, added)[-1], atol=1e-4)
    assert answer.token_ids == said(qwen, embeds, places, added, after)


def said(qwen, embeds, places, planes, after, count=4):
    """The greedy answer, each token by a run of all that is before it."""
    tokens, table = [], qwen.theirs.model.get_input_embeddings().weight.detach().numpy()
    for step in range(count):
        tokens.append(int(qwen.theirs.logits(embeds, places, planes)[-1].argmax()))
        embeds = np.concatenate([embeds, table[tokens[-1:]]])
        places = np.concatenate([places, np.full((3, 1), after + step)], axis=1)
        planes = None if planes is None else np.pad(planes, ((0, 0), (0, 1), (0, 0)))
    return tokens


def test_planes_and_places_make_a_difference(qwen, image):
    """What the test above could not tell apart otherwise."""
    embeds, places, added, _ = prompt(qwen, [image], *([part] for part in dropped(qwen, image)), "original")
    right = qwen.theirs.logits(embeds, places, added)[-1]
    row, column = places[1:]
    wrong = [(np.tile(np.arange(len(embeds)), (3, 1)), added), (np.stack([places[0], column, row]), added)]
    if added is not None:
        wrong += [
            (places, np.zeros_like(added)),
            (places, added[[1, 0, 2]]),
            (places, np.roll(added, 1, axis=1)),
        ]
    for other, planes in wrong:
        assert np.abs(qwen.theirs.logits(embeds, other, planes)[-1] - right).max() > 0.01


@pytest.mark.parametrize("layer", [1, 2])
def test_a_method_in_the_decoder_leaves_what_transformers_layers_leave(qwen, image, layer):
    model = qwen.shaped(qwen.kind.resolution(*CELLS), method="fastv")
    features, planes = qwen.theirs.features(image)
    everything = [features], [planes], [np.arange(len(features))]
    embeds, places, added, after = prompt(qwen, [image], *everything, "original")
    visual = np.flatnonzero(qwen.theirs.inputs(([image], QUESTION))["input_ids"][0] == model.tokens.image_id)
    reduced = ReducedReference(model, model.plan("fastv", KEEP, {"layer": layer}))
    logits = reduced.begin(embeds, places, visual, added)
    expected, kept = qwen_reference.fastv(qwen.theirs, embeds, places, added, visual, layer, KEEP)

    assert reduced.kept.tolist() == kept.tolist()
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    table = qwen.theirs.model.get_input_embeddings().weight.detach().numpy()
    for step, token in enumerate([5, 17]):
        logits = reduced.append(table[[token]], np.full((3, 1), after + step))
        embeds = np.concatenate([embeds, table[[token]]])
        places = np.concatenate([places, np.full((3, 1), after + step)], axis=1)
        added = None if added is None else np.pad(added, ((0, 0), (0, 1), (0, 0)))
        expected, _ = qwen_reference.fastv(qwen.theirs, embeds, places, added, visual, layer, kept)
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.exhaustive  # the module is held against the same layers above, and its graph in tests/models/test_decoder_options.py
def test_a_bundle_that_drops_in_the_decoder_says_what_transformers_layers_say(make_bundle, qwens):
    """Of the model with planes; what is exported of the other is the same without them."""
    qwen = qwens("qwen3_vl")
    image = picture(*qwen.kind.size(*CELLS, OFF), 5)
    features, planes = qwen.theirs.features(image)
    everything = [features], [planes], [np.arange(len(features))]
    embeds, places, added, _ = prompt(qwen, [image], *everything, "original")
    visual = np.flatnonzero(
        qwen.theirs.inputs(([image], QUESTION))["input_ids"][0] == qwen.model.tokens.image_id
    )
    logits, _ = qwen_reference.fastv(qwen.theirs, embeds, places, added, visual, 2, KEEP)
    bundle = make_bundle(
        qwen.folder, KEEP, method="fastv", settings={"layer": 2}, resolution=qwen.kind.resolution(*CELLS)
    )

    with fico_export.load(bundle) as vlm:
        answer = vlm.generate(QUESTION, image, max_new_tokens=4, sampling=GREEDY)
    assert answer.token_ids[0] == logits.argmax()
    assert answer.visual_tokens == CELLS[0] * CELLS[1]
