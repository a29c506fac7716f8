"""The `ort` target's decoder, its KV cache written in place: tokens and logits equal transformers'."""

import json
import warnings

import numpy as np
import pytest
import torch
from checkpoints import write_tiny
from stepping import append
from transformers import LlavaForConditionalGeneration

import fico_export
from fico_export.errors import ConfigError, EngineError, InputError
from fico_export.runtime.backends.choice import choose
from fico_export.runtime.backends.ort import decoder as runtime_decoder
from fico_export.runtime.backends.ort.pools import LEAST_ROWS, SharedPool

pytestmark = pytest.mark.slow

STEPS = 64
CONTEXT = 640
SHAPES = {
    "a head of keys for each of queries": {"num_key_value_heads": 4},
    "mistral": {"model_type": "mistral", "head_dim": 24, "sliding_window": 512},
    "qwen2": {"model_type": "qwen2"},
    "yarn rope, biases": {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                            "original_max_position_embeddings": 160},
        "attention_bias": True,
        "mlp_bias": True,
    },
}  # fmt: skip


def reference(folder):
    """transformers' model, which never ends an answer of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def logits(model, embeds, positions):
    """Of transformers [S, V], without a cache."""
    with torch.inference_mode():
        output = model(
            inputs_embeds=torch.from_numpy(embeds)[None],
            position_ids=torch.tensor([list(positions)]),
            attention_mask=torch.ones(1, len(positions), dtype=torch.int64),
        )
    return output.logits[0].numpy()


def rows(count, seed=0):
    return np.random.RandomState(seed).randn(count, 64).astype(np.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A loaded bundle and transformers' model; two query heads share each key-value head."""
    tmp = tmp_path_factory.mktemp("fused")
    folder = write_tiny(tmp / "checkpoint", text={"max_position_embeddings": CONTEXT}, seed=1)
    return fico_export.load(fico_export.export(folder, 16, target="ort", out=tmp / "bundle")), reference(
        folder
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_tokens_equal_those_of_transformers(shape, tmp_path):
    folder = write_tiny(tmp_path / "checkpoint", text=SHAPES[shape], seed=5)
    vlm = fico_export.load(fico_export.export(folder, target="ort", out=tmp_path / "bundle", verify=False))
    model = reference(folder)
    prompt = np.random.RandomState(3).randint(3, 440, 21).tolist()
    want = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, 21, dtype=torch.int64),
        do_sample=False,
        max_new_tokens=STEPS,
    )[0, 21:].tolist()
    cache, got = vlm.decoder.new_cache(), []
    scores = append(vlm.decoder, cache, vlm.embed(prompt), range(21))
    for at in range(21, 21 + STEPS):
        got.append(int(scores.argmax()))
        scores = append(vlm.decoder, cache, vlm.embed(got[-1:]), [at])

    assert isinstance(cache.pool, SharedPool)
    assert len(set(want)) > 1
    assert got == want


@pytest.mark.parametrize("count", [1, 2, LEAST_ROWS - 1, LEAST_ROWS, LEAST_ROWS + 1, CONTEXT])
def test_the_last_logits_of_a_prompt_of_any_length(pair, count):
    vlm, model = pair
    embeds = rows(count)

    got = append(vlm.decoder, vlm.decoder.new_cache(), embeds, range(count))
    np.testing.assert_allclose(got, logits(model, embeds, range(count))[-1], atol=1e-4)


@pytest.mark.parametrize("pieces", [[300], [200, 57, 1, 42], [255, 1, 1, 43], [1, 299]], ids=str)
def test_pieces_with_gaps_in_their_positions(pair, pieces):
    """The buffer grows in the middle; a prompt's first piece has gaps, as the kept tokens of an image do."""
    vlm, model = pair
    embeds = rows(300, seed=2)
    positions = np.sort(np.random.RandomState(2).choice(CONTEXT, 300, replace=False)).tolist()
    want = logits(model, embeds, positions)
    cache, start = vlm.decoder.new_cache(), 0
    for count in pieces:
        end = start + count
        got = append(vlm.decoder, cache, embeds[start:end], positions[start:end])
        np.testing.assert_allclose(got, want[end - 1], atol=1e-4)
        start = end


def test_a_long_prompt_runs_in_chunks(pair, monkeypatch):
    vlm, model = pair
    monkeypatch.setattr(runtime_decoder, "CHUNK", 32)
    embeds = rows(75, seed=3)

    got = append(vlm.decoder, vlm.decoder.new_cache(), embeds, range(75))
    np.testing.assert_allclose(got, logits(model, embeds, range(75))[-1], atol=1e-4)


def test_tokens_taken_back_leave_no_trace(pair):
    vlm, model = pair
    embeds, other = rows(40, seed=4), rows(30, seed=5)
    cache = vlm.decoder.new_cache()
    append(vlm.decoder, cache, embeds, range(40))
    cache.drop_last(25)
    assert cache.lengths == [15, 15]
    got = append(vlm.decoder, cache, other, range(15, 45))

    whole = np.concatenate([embeds[:15], other])
    np.testing.assert_allclose(got, logits(model, whole, range(45))[-1], atol=1e-4)


def test_what_goes_past_the_context_is_refused_and_nothing_is_lost(pair):
    vlm, model = pair
    embeds = rows(CONTEXT, seed=6)
    cache = vlm.decoder.new_cache()
    append(vlm.decoder, cache, embeds[: CONTEXT - 1], range(CONTEXT - 1))
    with pytest.raises(
        InputError, match=f"{CONTEXT - 1} tokens and 2 more; the model's context is {CONTEXT}"
    ):
        append(vlm.decoder, cache, rows(2), [1, 2])
    with pytest.raises(InputError, match=f"position id {CONTEXT}; the model's context is {CONTEXT}"):
        append(vlm.decoder, cache, rows(1), [CONTEXT])
    got = append(vlm.decoder, cache, embeds[-1:], [CONTEXT - 1])

    np.testing.assert_allclose(got, logits(model, embeds, range(CONTEXT))[-1], atol=1e-4)


def test_a_chunk_that_fails_takes_back_those_before_it(pair, monkeypatch):
    vlm, _ = pair
    monkeypatch.setattr(runtime_decoder, "CHUNK", 8)
    cache = vlm.decoder.new_cache()
    append(vlm.decoder, cache, rows(5), range(5))
    step, calls = vlm.decoder._step, []

    def fails_the_second_time(*given):
        calls.append(given)
        if len(calls) == 2:
            raise EngineError("no memory", fix="free some")
        return step(*given)

    monkeypatch.setattr(vlm.decoder, "_step", fails_the_second_time)
    with pytest.raises(EngineError):
        append(vlm.decoder, cache, rows(20), range(5, 25))

    assert cache.lengths == [5, 5]


def test_one_buffer_serves_every_step_until_it_is_full(pair):
    vlm, _ = pair
    cache = vlm.decoder.new_cache()
    append(vlm.decoder, cache, rows(3), range(3))
    buffers = [id(b) for b in cache.pool.buffers]
    for at in range(3, 9):
        append(vlm.decoder, cache, rows(1), [at])

    assert [id(b) for b in cache.pool.buffers] == buffers
    assert cache.pool.rows == LEAST_ROWS
    assert not cache.pool.buffers[0][:, :, 9:].any()
    assert cache.pool.buffers[0][:, :, :9].any(axis=(0, 1, 3)).all()


def test_two_conversations_do_not_share_a_buffer(pair):
    vlm, _ = pair
    alone = vlm.generate("How many?", max_new_tokens=8).token_ids
    first, second = (
        vlm.chat().stream("How many?", max_new_tokens=8),
        vlm.chat().stream("Why?", max_new_tokens=8),
    )
    pieces = [iter(first), iter(second)]
    for _ in range(8):
        for piece in pieces:
            next(piece, None)
    assert [next(piece, None) for piece in pieces] == [None, None]

    assert first.answer.token_ids == alone


def test_a_conversation_equals_that_of_the_portable_form(tiny_checkpoint, make_bundle, photographs):
    """Whose answers are held to transformers' in test_greedy.py."""
    turns = []
    for options in ({"target": "ort", "verify": False}, {"precision": "fp32"}):
        bundle = make_bundle(tiny_checkpoint, 16, positions="original", **options)
        chat = fico_export.load(bundle).chat()
        first = chat.ask("What is it?", photographs[:1], max_new_tokens=16)
        second = chat.ask("And this one?", photographs[1:2], max_new_tokens=16)
        turns.append([(a.token_ids, a.cached_tokens, a.finish_reason) for a in (first, second)])

    assert turns[0] == turns[1]


@pytest.mark.exhaustive
def test_a_method_inside_the_decoder_keeps_the_plain_form(tiny_checkpoint, make_bundle, photographs):
    options = {"method": "fastv", "settings": {"layer": 1}, "target": "ort"}
    bundle = make_bundle(tiny_checkpoint, 16, verify=False, **options)
    vlm = fico_export.load(bundle)

    assert vlm.generate("What is it?", photographs[:1], max_new_tokens=4).token_ids
    assert vlm.decoder.reduces


def test_its_bundle_is_for_the_cpu(pair, monkeypatch):
    vlm, _ = pair
    portable = vlm.manifest.model_copy(update={"target": "portable"})
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("fico_export.devices.gpu.count", lambda: 1)
    assert fico_export.load(vlm.folder).backend == "ort-cpu"
    assert choose("auto", vlm.folder, portable).name == "ort-cuda"
    with pytest.raises(ConfigError, match="ort-cuda does not run a bundle for target ort"):
        fico_export.load(vlm.folder, backend="ort-cuda")


def test_the_manifest_names_the_target(pair):
    manifest = json.loads((pair[0].folder / "manifest.json").read_text())

    assert (manifest["target"], manifest["opset"]) == ("ort", 23)
