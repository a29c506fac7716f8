"""The decoder and embedding graphs: names and layouts that others can open, and logits equal to transformers'."""

import warnings

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from fico_export.bundle.manifest import Manifest


@pytest.fixture(scope="module")
def graphs(tiny_checkpoint_v5, make_bundle):
    """(manifest, decoder session, embedding session, transformers' model)."""
    folder = make_bundle(tiny_checkpoint_v5)
    manifest = Manifest.load(folder)
    decoder, embed = (
        ort.InferenceSession(str(folder / manifest.graphs[name].file))
        for name in ("decoder_model_merged", "embed_tokens")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlavaForConditionalGeneration.from_pretrained(tiny_checkpoint_v5, dtype=torch.float32).eval()
    return manifest, decoder, embed, model


def run(decoder, embeds, mask, positions, past=None):
    batch = embeds.shape[0]
    feeds = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
    names = [i.name for i in decoder.get_inputs() if i.name.startswith("past_key_values")]
    empty = np.zeros((batch, 2, 0, 16), np.float32)
    feeds |= dict(zip(names, past or [empty] * len(names), strict=True))
    return decoder.run(None, feeds)


def test_names_and_layouts_follow_the_onnx_community_convention(graphs):
    manifest, decoder, embed, _ = graphs
    pairs = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
    inputs = {i.name: i for i in decoder.get_inputs()}

    assert [*inputs] == [
        "inputs_embeds",
        "attention_mask",
        "position_ids",
        *(f"past_key_values.{p}" for p in pairs),
    ]
    assert [o.name for o in decoder.get_outputs()] == ["logits", *(f"present.{p}" for p in pairs)]
    assert inputs["past_key_values.0.key"].shape == ["batch_size", 2, "past_sequence_length", 16]
    assert inputs["inputs_embeds"].shape == ["batch_size", "sequence_length", 64]
    assert decoder.get_outputs()[0].type == "tensor(float)"
    assert [i.name for i in embed.get_inputs()] == ["input_ids"]
    assert [o.name for o in embed.get_outputs()] == ["inputs_embeds"]
    assert manifest.graphs["decoder_model_merged"].file == "onnx/decoder_model_merged.onnx"


def test_the_manifest_describes_the_graphs_as_they_are(graphs):
    manifest, decoder, _, _ = graphs
    described = manifest.graphs["decoder_model_merged"]

    assert [t.name for t in described.inputs] == [i.name for i in decoder.get_inputs()]
    assert [t.shape for t in described.inputs] == [i.shape for i in decoder.get_inputs()]
    assert [t.shape for t in described.outputs] == [o.shape for o in decoder.get_outputs()]


def test_embeddings_equal_the_table(graphs):
    _, _, embed, model = graphs
    ids = np.array([[5, 9, 300], [0, 447, 2]])
    table = model.get_input_embeddings().weight.detach().numpy()

    np.testing.assert_array_equal(embed.run(None, {"input_ids": ids})[0], table[ids])


@pytest.mark.parametrize("pieces", [[11], [1] * 11, [7, 1, 1, 2], [3, 8]], ids=str)
def test_prefill_in_any_pieces_equals_the_whole_sequence(graphs, pieces):
    _, decoder, _, model = graphs
    embeds = np.random.RandomState(0).randn(1, 11, 64).astype(np.float32)
    with torch.inference_mode():
        want = model(inputs_embeds=torch.from_numpy(embeds)).logits.numpy()
    past, start, got = None, 0, []
    for count in pieces:
        end = start + count
        mask, positions = np.ones((1, end), np.int64), np.arange(start, end)[None]
        logits, *past = run(decoder, embeds[:, start:end], mask, positions, past)
        got.append(logits)
        start = end

    np.testing.assert_allclose(np.concatenate(got, 1), want, atol=1e-4)


def test_a_padded_batch_equals_its_rows(graphs):
    """Left padding, as batched generation has it: other runtimes open the graph so."""
    _, decoder, _, model = graphs
    embeds = np.random.RandomState(1).randn(2, 9, 64).astype(np.float32)
    mask = np.ones((2, 9), np.int64)
    mask[1, :4] = 0
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    logits = run(decoder, embeds, mask, positions)[0]
    with torch.inference_mode():
        whole = model(inputs_embeds=torch.from_numpy(embeds[:1])).logits[0].numpy()
        short = model(inputs_embeds=torch.from_numpy(embeds[1:, 4:])).logits[0].numpy()

    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[0], whole, atol=1e-4)
    np.testing.assert_allclose(logits[1, 4:], short, atol=1e-4)
