"""Decoders with a static cache, run by ONNX Runtime: tokens and logits equal transformers', up to the last row and not past it."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from checkpoints import write_tiny
from exhaustive import exhaustive
from reference import decoder_side
from stepping import append
from test_greedy import Reference

import fico_export
from fico_export import models
from fico_export.errors import ConfigError, InputError
from fico_export.exporter import trace, weights
from fico_export.models.decoders.in_place import InPlaceAttention, InPlaceDecoder
from fico_export.runtime.backends.ort import decoder as runtime_decoder
from fico_export.runtime.inputs.prompt import Message

TARGETS = {"legacy": "trt-10.3", "modern": "rtx"}
QUESTION = "What is in this picture?"
CONTEXT, ROWS, STEPS = 640, 320, 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """More layers than are traced, two query heads for each key-value head."""
    text = {"num_hidden_layers": 4, "max_position_embeddings": CONTEXT}
    folder = tmp_path_factory.mktemp("checkpoint") / "static"
    return write_tiny(folder, vision={"num_hidden_layers": 2}, text=text, seed=4)


@pytest.fixture(scope="module")
def reference(checkpoint):
    """transformers' model, which never ends an answer of its own."""
    loaded = Reference(checkpoint)
    loaded.model.generation_config.eos_token_id = None
    return loaded


@pytest.fixture(scope="module", params=TARGETS)
def vlm(request, checkpoint, make_bundle):
    """A bundle that keeps all tokens, and never ends an answer either."""
    folder = make_bundle(checkpoint, target=TARGETS[request.param], max_context=ROWS, verify=False)
    loaded = fico_export.load(folder)
    loaded.manifest = endless(loaded.manifest)
    return loaded


def endless(manifest, **changes):
    tokens = manifest.tokens.model_copy(update={"eos_ids": []})
    decoder = manifest.decoder.model_copy(update=changes)
    return manifest.model_copy(update={"tokens": tokens, "decoder": decoder})


def logits(reference, embeds, positions):
    """Of transformers [S, V], without a cache."""
    with torch.inference_mode():
        output = reference.model(
            inputs_embeds=torch.from_numpy(embeds)[None],
            position_ids=torch.tensor([list(positions)]),
            attention_mask=torch.ones(1, len(positions), dtype=torch.int64),
        )
    return output.logits[0].numpy()


def rows(count, seed=0):
    return np.random.RandomState(seed).randn(count, 64).astype(np.float32)


def test_greedy_tokens_equal_those_of_transformers(vlm, reference, photographs, monkeypatch):
    """An image, in chunks, and a further turn."""
    monkeypatch.setattr(runtime_decoder, "CHUNK", 16)
    chat = vlm.chat()
    first = chat.ask(QUESTION, photographs[:1], max_new_tokens=STEPS)
    second = chat.ask("Why?", max_new_tokens=STEPS)
    turns = [("user", QUESTION, photographs[:1])]
    want = reference.generate(turns, STEPS)

    assert first.token_ids == want
    assert len(set(want)) > 1
    turns += [("assistant", first.text, []), ("user", "Why?", [])]
    assert second.token_ids == reference.generate(turns, STEPS)
    assert second.cached_tokens > 64


@pytest.mark.parametrize("count", [1, 2, ROWS - 1, ROWS])
def test_the_last_logits_of_a_prompt_of_any_length(vlm, reference, count):
    embeds, positions = rows(count), [at + at // 2 for at in range(count)]
    cache = vlm.decoder.new_cache()

    got = append(vlm.decoder, cache, embeds, positions)
    np.testing.assert_allclose(got, logits(reference, embeds, positions)[-1], atol=1e-4)
    assert cache.lengths == [count] * 4


def test_what_goes_past_the_cache_is_refused_and_nothing_is_lost(vlm, reference):
    embeds = rows(ROWS, seed=6)
    want = logits(reference, embeds, range(ROWS))
    cache = vlm.decoder.new_cache()
    append(vlm.decoder, cache, embeds[: ROWS - 1], range(ROWS - 1))
    with pytest.raises(InputError, match=f"{ROWS - 1} tokens and 2 more; .* has {ROWS} rows") as refused:
        append(vlm.decoder, cache, rows(2), [ROWS - 1, ROWS])
    assert "--max-context" in refused.value.fix
    got = append(vlm.decoder, cache, embeds[-1:], [ROWS - 1])
    np.testing.assert_allclose(got, want[-1], atol=1e-4)
    with pytest.raises(InputError, match=f"{ROWS} tokens and 1 more"):
        append(vlm.decoder, cache, rows(1), [ROWS])
    cache.drop_last(1)
    again = append(vlm.decoder, cache, embeds[-1:], [ROWS - 1])

    np.testing.assert_array_equal(again, got)


def test_tokens_taken_back_leave_no_trace(vlm, reference):
    embeds, other = rows(40, seed=4), rows(30, seed=5)
    cache = vlm.decoder.new_cache()
    append(vlm.decoder, cache, embeds, range(40))
    cache.drop_last(25)
    assert cache.lengths == [15] * 4
    got = append(vlm.decoder, cache, other, range(15, 45))

    whole = np.concatenate([embeds[:15], other])
    np.testing.assert_allclose(got, logits(reference, whole, range(45))[-1], atol=1e-4)


def test_two_conversations_do_not_share_a_cache(vlm):
    alone = vlm.generate("How many?", max_new_tokens=8).token_ids
    streams = [vlm.chat().stream(question, max_new_tokens=8) for question in ("How many?", "Why?")]
    pieces = [iter(stream) for stream in streams]
    for _ in range(9):
        for piece in pieces:
            next(piece, None)

    assert streams[0].answer.token_ids == alone


def test_an_answer_ends_where_the_cache_is_full(vlm):
    chat = vlm.chat()
    answer = chat.ask("x", max_new_tokens=2 * ROWS)

    assert answer.finish_reason == "context"
    assert answer.prompt_tokens + len(answer.token_ids) == ROWS + 1  # the last token needs no row
    assert chat.cache_lengths == [ROWS] * 4


def test_an_answer_ends_where_the_positions_do(vlm):
    """Two limits: positions end with the model's context, whatever room the cache has."""
    loaded = fico_export.load(vlm.folder)
    loaded.manifest = endless(loaded.manifest, context=40)
    answer = loaded.generate("x", max_new_tokens=ROWS)

    assert answer.finish_reason == "context"
    assert answer.prompt_tokens + len(answer.token_ids) == 41


def test_a_prompt_that_does_not_fit_is_refused_and_the_conversation_stays(vlm, photographs):
    chat = vlm.chat()
    first = chat.ask("Hi", max_new_tokens=4)
    with pytest.raises(InputError, match=rf"has {ROWS} rows") as refused:
        chat.ask("x", photographs[:5], max_new_tokens=4)
    assert "--max-context" in refused.value.fix
    second = chat.ask("Hm", max_new_tokens=4)

    assert second.cached_tokens >= first.prompt_tokens
    fresh = vlm.chat()
    fresh.ask("Hi", max_new_tokens=4)
    assert fresh.ask("Hm", max_new_tokens=4).token_ids == second.token_ids


@pytest.mark.parametrize("pieces", [[75], [40, 1, 1, 33]], ids=str)
def test_attention_as_one_operator_equals_transformers(pieces, checkpoint, reference, operator_form):
    """The form of FP16, traced in FP32, in which no rounding hides a fault."""
    session, embeds = operator_form, rows(sum(pieces), seed=7)
    names = [i.name for i in session.get_inputs()][3:]
    past = [np.zeros((1, 2, ROWS, 16), np.float32) for _ in names]
    want, start = logits(reference, embeds, range(75)), 0
    for count in pieces:
        end = start + count
        feeds = {
            "inputs_embeds": embeds[None, start:end],
            "position_ids": np.arange(start, end)[None],
            "past_lengths": np.array([start]),
        }
        got, *past = session.run(None, feeds | dict(zip(names, past, strict=True)))
        np.testing.assert_allclose(got[0, 0], want[end - 1], atol=1e-4)
        start = end


@pytest.fixture(scope="module")
def operator_form(checkpoint, tmp_path_factory):
    model = models.load(checkpoint)
    config = model.decoder_config
    graph = trace.trace(lambda: InPlaceDecoder(config, torch.float32, ROWS, attention=InPlaceAttention), 24)
    assert sum(node.op_type == "Attention" for node in graph.graph) == 4
    graph.ir_version = 10
    weights.bind(graph, model.checkpoint, lambda text: None)
    trace.simplify(graph)
    path = tmp_path_factory.mktemp("graph") / "decoder.onnx"
    weights.save(graph, path, lambda count: None)
    return ort.InferenceSession(path)


def test_layers_of_unequal_lengths(tmp_path, make_bundle, photographs):
    """A method inside the decoder: both dialects answer as the plain decoder does, and as one in NumPy."""
    checkpoint = write_tiny(tmp_path / "shallow", vision={"num_hidden_layers": 2}, seed=4)
    options = {"method": "fastv", "settings": {"layer": 1}, "verify": False}
    static = {"max_context": ROWS}
    bundles = [make_bundle(checkpoint, 16, **options)]
    bundles += [make_bundle(checkpoint, 16, target=t, **options, **static) for t in TARGETS.values()]
    answers, lengths = [], []
    for folder in bundles:
        vlm = fico_export.load(folder)
        vlm.manifest = endless(vlm.manifest)
        chat = vlm.chat()
        turns = [
            chat.ask(QUESTION, photographs[:1], max_new_tokens=8),
            chat.ask("Why?", max_new_tokens=8),
        ]
        answers.append([turn.token_ids for turn in turns])
        lengths.append(chat.cache_lengths)
    ids = vlm.formatter.encode([Message("user", QUESTION, 1)], 64)
    start = ids.index(vlm.manifest.tokens.image_id)
    model = Reference(checkpoint).model
    embeds = model.get_input_embeddings()(torch.tensor([0 if i == ids[start] else i for i in ids]))
    embeds = embeds.detach()
    embeds[start : start + 64] = torch.from_numpy(vlm.encode_image(photographs[0]).features)
    want = decoder_side.generate(model, embeds, start, 64, list(range(len(ids))), "fastv", 16, 8, layer=1)

    assert answers[0][0] == want.ids
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]
    assert lengths[0] == lengths[1] == lengths[2]
    assert lengths[0][0] - lengths[0][1] == 48
    with pytest.raises(InputError, match=f"0 tokens and {ROWS + 1} more"):
        vlm.decoder.prefill(rows(ROWS + 1), np.arange(ROWS + 1)[None], np.arange(64))


@pytest.mark.parametrize(("target", "precision"), [exhaustive("trt-10.3", "fp16"), ("trt-11", "int4")])
def test_export_verifies(target, precision, checkpoint, make_bundle):
    """The cache of 128 rows has room for one of the images that a portable bundle is asked about, not for two."""
    options = {"block": 32, "quantize_head": "int8"} if precision == "int4" else {}
    folder = make_bundle(
        checkpoint, target=target, precision=precision, max_context=128, verify=False, **options
    )
    report = fico_export.verify(folder)

    assert not report.failed
    assert {"decoder_model_merged", "answers"} <= {check.graph for check in report.checks}


@pytest.mark.parametrize(
    ("target", "rows", "what", "fix"),
    [
        ("portable", 128, "grows", "trt-10.3"),
        ("ort", 128, "grows", "rtx"),
        ("rtx", CONTEXT + 1, "context is 640", "at most 640"),
        ("rtx", 79, "an image takes 16", "--max-context 80"),
    ],
)
def test_rows_that_cannot_be_are_refused(target, rows, what, fix, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=what) as refused:
        fico_export.export(checkpoint, 16, target=target, max_context=rows, out=tmp_path / "b")

    assert fix in refused.value.fix
    assert not (tmp_path / "b").exists()
