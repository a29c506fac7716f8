"""An image whose visual tokens stand among others, reduced in the decoder: as transformers' layers on the rows that are left."""

import json
import shutil
from functools import cache
from hashlib import sha256

import numpy as np
import onnx
import pytest
import torch
from checkpoints import write_tiny
from exhaustive import exhaustive
from reference.layer_by_layer import through_layers
from transformers import LlavaForConditionalGeneration

import fico_export
from fico_export.bundle.manifest import Manifest
from fico_export.bundle.profiles import LayoutRecord
from fico_export.errors import BundleError, InputError
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.sampling import GREEDY

QUESTION = "What is in this picture?"
N, KEEP, NEWLINE = 64, 13, 5
RECYCLE = 0.9
SETTINGS = {
    "fastv": {"layer": 2},
    "pyramiddrop": {"layers": "0,2,3"},
    "sparsevlm": {"layers": "0,2", "recycle": RECYCLE},
}
# What drops in three layers is what drops in one and what merges in two.
METHODS = ["fastv", exhaustive("pyramiddrop"), "sparsevlm"]
LEFT = {"fastv": {1: KEEP}, "pyramiddrop": {0: 38, 2: 22, 3: KEEP}, "sparsevlm": {0: 29, 2: KEEP}}
"""Visual tokens after each layer that reduces: by equal ratios from 64."""

RUNS = [(2, 5), (9, 16), (26, 1), (28, 30), (60, 12)]
"""First row and length of each run."""

PLACES = {
    "one run": 7 + np.arange(N),
    "several runs": np.concatenate([start + np.arange(count) for start, count in RUNS]),
    "from the first row": np.concatenate([[0, 1], 5 + np.arange(N - 2)]),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """64 visual tokens, four layers with grouped heads."""
    folder = tmp_path_factory.mktemp("checkpoint") / "four-layers"
    return write_tiny(folder, text={"num_hidden_layers": 4}, seed=11)


@pytest.fixture(scope="module")
def model(checkpoint):
    loaded = LlavaForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    return loaded.eval()


@pytest.fixture(scope="module")
def opened(checkpoint, make_bundle):
    """Method → its bundle, opened."""

    @cache
    def of(method):
        settings = SETTINGS[method]
        return fico_export.load(make_bundle(checkpoint, KEEP, method=method, settings=settings, verify=False))

    return of


def prompt_of(visual, channels=64):
    """Random embeddings [S, C], six rows of text after the last visual one."""
    generator = torch.Generator().manual_seed(int(visual.sum()))
    return torch.randn(int(visual[-1]) + 7, channels, generator=generator)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", METHODS)
def test_the_graph_leaves_what_transformers_layers_leave(opened, model, method, place):
    visual, vlm = PLACES[place], opened(method)
    embeds = prompt_of(visual)
    logits, cache, kept = vlm.decoder.prefill(embeds.numpy(), np.arange(len(embeds))[None], visual)
    expected, left, lengths = through_layers(model, method, embeds, visual, LEFT[method], RECYCLE)

    assert kept.tolist() == left.tolist()
    assert cache.lengths == lengths
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", METHODS)
def test_where_visual_tokens_stand_makes_a_difference(opened, method):
    """The comparison above can fail."""
    visual, vlm = PLACES["several runs"], opened(method)
    embeds = prompt_of(visual).numpy()
    logits = [
        vlm.decoder.prefill(embeds, np.arange(len(embeds))[None], rows)[0]
        for rows in (visual, visual[0] + np.arange(N))
    ]
    assert np.abs(logits[0] - logits[1]).max() > 1e-2 * np.abs(logits[0]).max()


def test_text_between_rows_of_an_image_goes_through_a_conversation(opened, model, photographs, tmp_path):
    """A layout with a text token after each row of the image: none of them is dropped, and a turn after it goes on from there."""
    vlm = with_newlines(opened("fastv"), tmp_path)
    shown = vlm.encode_image(photographs[0])
    laid_out = vlm.layout.lay_out(vlm.formatter.encode([Message("user", QUESTION, 1)]), [shown])
    embeds = torch.from_numpy(laid_out.rows(vlm.embed, [shown]).embeds)
    expected, left, lengths = through_layers(model, "fastv", embeds, laid_out.visual_rows, LEFT["fastv"])
    with vlm:
        chat = vlm.chat()
        answer = chat.ask(QUESTION, [shown], max_new_tokens=1, sampling=GREEDY)

        assert np.diff(laid_out.visual_rows).max() == 2
        assert answer.token_ids == [int(expected.argmax())]
        assert chat.kept.tolist() == left.tolist()
        assert chat.cache_lengths == lengths
        assert chat.ask("Why?", max_new_tokens=2).cached_tokens == answer.prompt_tokens


def test_another_number_of_visual_tokens_is_refused(opened):
    rows = np.zeros((70, 64), np.float32)
    with pytest.raises(InputError, match="63 visual tokens in the prompt; this bundle's decoder reduces 64"):
        opened("fastv").decoder.prefill(rows, np.arange(70)[None], np.arange(63))


@pytest.fixture(scope="module")
def before(opened, tmp_path_factory):
    """A bundle as it was exported before: its graph takes `visual_start` [1], and the rows follow from it."""
    folder = tmp_path_factory.mktemp("before") / "bundle"
    shutil.copytree(opened("fastv").folder, folder)
    path = folder / "onnx/decoder_prefill.onnx"
    graph = onnx.load(path, load_external_data=False)
    (rows,) = (value for value in graph.graph.input if value.name == "visual_rows")
    rows.CopyFrom(onnx.helper.make_tensor_value_info("visual_start", onnx.TensorProto.INT64, [1]))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(N)[None], "counted"))
    graph.graph.node.insert(0, onnx.helper.make_node("Add", ["visual_start", "counted"], ["visual_rows"]))
    path.unlink()
    path.write_bytes(graph.SerializeToString())
    manifest = json.loads((folder / "manifest.json").read_text())
    (spec,) = (i for i in manifest["graphs"]["decoder_prefill"]["inputs"] if i["name"] == "visual_rows")
    spec |= {"name": "visual_start", "shape": [1]}
    manifest["files"]["onnx/decoder_prefill.onnx"] = {
        "sha256": sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_bundle_that_was_exported_before_answers_as_it_did(before, opened, photographs):
    with fico_export.load(before) as vlm:
        answer = vlm.generate(QUESTION, photographs[0], max_new_tokens=4, sampling=GREEDY)
    new = opened("fastv").generate(QUESTION, photographs[0], max_new_tokens=4, sampling=GREEDY)

    assert answer.token_ids == new.token_ids


def test_a_bundle_that_was_exported_before_refuses_other_than_one_run(before):
    visual = PLACES["several runs"]
    embeds = prompt_of(visual).numpy()
    with fico_export.load(before) as vlm, pytest.raises(BundleError, match="takes visual_start") as refused:
        vlm.decoder.prefill(embeds, np.arange(len(embeds))[None], visual)
    assert refused.value.fix == "export the bundle again"


def with_newlines(vlm, folder):
    """The bundle with a text token after each row of an image."""
    shutil.copytree(vlm.folder, folder / "bundle")
    (folder / "bundle/manifest.json").unlink()
    record = LayoutRecord(rule="grid", numbers={"newline": NEWLINE})
    Manifest.load(vlm.folder).model_copy(update={"layout": record}).save(folder / "bundle")
    return fico_export.load(folder / "bundle")
