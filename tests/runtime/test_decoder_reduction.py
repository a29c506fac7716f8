"""Bundles that reduce inside the decoder answer as a plain NumPy decoder does that recomputes everything for each token."""

import dataclasses

import numpy as np
import pytest
import torch
from checkpoints import GRID24, write_tiny
from exhaustive import ALIKE, exhaustive, of_each
from reference import decoder_side
from transformers import LlavaForConditionalGeneration

import fico_export
from fico_export.api import open_checkpoint
from fico_export.devices import targets
from fico_export.errors import ConfigError, InputError
from fico_export.exporter.graphs import graph_jobs
from fico_export.exporter.lint import lint, read
from fico_export.models.decoders.reducing import Prefill, WithPast
from fico_export.runtime.inputs.prompt import Message

QUESTION = "What is in this picture?"
LAYERS = 6
OPTIONS = [
    ("fastv", 16, {"layer": 3}),
    ("pyramiddrop", 33, {"layers": "1,5"}),
    ("sparsevlm", 192, {"layers": "0,3,4", "recycle": 0.9}),
    ("sparsevlm", 64, {"recycle": 0.0}),
    ("sparsevlm", 1, {}),
    ("ficoco-l", 192, {"beta": 0.3, "gamma": 0.2, "epsilon": 0.99, "first_layer": 2}),
    ("ficoco-l", 1, {}),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """576 visual tokens, a decoder of six layers with grouped heads."""
    folder = tmp_path_factory.mktemp("checkpoint") / "deep"
    return write_tiny(folder, vision=GRID24, text={"num_hidden_layers": LAYERS}, seed=3)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """No more layers than the methods' own settings take, for each takes time to trace: what bundles are made of."""
    folder = tmp_path_factory.mktemp("checkpoint") / "shallow"
    vision = GRID24 | {"num_hidden_layers": 2}
    return write_tiny(folder, vision=vision, text={"num_hidden_layers": 4}, seed=3)


def in_transformers(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(checkpoint):
    return in_transformers(checkpoint)


@pytest.fixture(scope="module")
def shallow_model(shallow):
    return in_transformers(shallow)


def prompt_of(vlm, model, picture):
    """Embeddings [S, C], position ids and the image's first row, as the reference takes them."""
    ids = vlm.formatter.encode([Message("user", QUESTION, 1)], 576)
    start = ids.index(vlm.manifest.tokens.image_id)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(torch.tensor([0 if i == ids[start] else i for i in ids]))
    embeds[start : start + 576] = torch.from_numpy(vlm.encode_image(picture).features)
    return embeds, start, list(range(len(ids)))


# FastV's graph is held against transformers' layers in test_visual_rows.py.
@pytest.mark.parametrize(
    "method", [exhaustive(m) if m in {*ALIKE, "fastv"} else m for m in decoder_side.METHODS]
)
def test_answers_kept_tokens_and_caches_equal_the_reference(
    method, shallow, shallow_model, make_bundle, photographs
):
    folder = make_bundle(shallow, 64, method=method, verify=False)
    vlm = fico_export.load(folder)
    for graph in vlm.manifest.graphs.values():  # every parser takes what this method alone has
        inferred = read(folder / graph.file)
        assert not [v for name in targets.names() for v in lint(inferred, targets.get(name))]
    seen = set()
    for picture, new_tokens in zip(
        photographs[:2], (2, 1), strict=True
    ):  # the reference takes seconds a token
        embeds, start, positions = prompt_of(vlm, shallow_model, picture)
        want = decoder_side.generate(shallow_model, embeds, start, 576, positions, method, 64, new_tokens)
        logits, cache, kept = vlm.decoder.prefill(
            embeds.numpy(), np.asarray([positions]), np.arange(start, start + 576)
        )
        text = len(positions) - 576

        np.testing.assert_allclose(logits, want.logits[0], atol=1e-3 * np.abs(want.logits).max())
        assert cache.lengths == [text + n for n in want.visual_per_layer]
        np.testing.assert_array_equal(kept, want.kept[max(want.kept)])
        assert vlm.manifest.reduction.cached == want.visual_per_layer
        assert want.visual_per_layer[-1] == 64

        ids = vlm.generate(QUESTION, [picture], max_new_tokens=new_tokens).token_ids
        assert ids == want.ids[: len(ids)] or nearly_tied(ids, want)
        seen.add(kept.tobytes())
    assert len(seen) > 1  # the image matters


@pytest.mark.parametrize(("method", "keep", "options"), OPTIONS)
def test_every_option_equals_the_reference(method, keep, options, checkpoint, model):
    opened = open_checkpoint(str(checkpoint), None)
    step = opened.plan(method, keep, options).steps[-1]
    prefill = opened.with_weights(Prefill(opened.decoder_config, step, torch.float32))
    embeds = torch.randn(1, 590, 64, generator=torch.Generator().manual_seed(1))
    asked = {k: [int(i) for i in v.split(",")] if k == "layers" else v for k, v in options.items()}
    want = decoder_side.generate(model, embeds[0], 5, 576, list(range(590)), method, keep, 1, **asked)
    with torch.inference_mode():
        logits, kept, *present = prefill(embeds, torch.arange(590)[None], torch.arange(5, 581)[None])

    np.testing.assert_array_equal(kept[0], want.kept[max(want.kept)])
    assert [t.shape[2] - 14 for t in present[::2]] == want.visual_per_layer
    np.testing.assert_allclose(logits[0, 0], want.logits[0], atol=1e-3 * np.abs(want.logits).max())


def nearly_tied(ids, want):
    """Whether the first token that differs had a rival closer than FP32 can tell."""
    at = next(i for i, (a, b) in enumerate(zip(ids, want.ids, strict=False)) if a != b)
    return want.logits[at][want.ids[at]] - want.logits[at][ids[at]] < 1e-5 * np.abs(want.logits[at]).max()


def test_a_wrong_budget_parts_from_the_reference(shallow, shallow_model, make_bundle, photographs):
    """The comparison above can fail."""
    vlm = fico_export.load(make_bundle(shallow, 64, method="fastv", verify=False))
    embeds, start, positions = prompt_of(vlm, shallow_model, photographs[0])
    want = decoder_side.generate(shallow_model, embeds, start, 576, positions, "fastv", 16, 1)
    logits, _, _ = vlm.decoder.prefill(embeds.numpy(), np.asarray([positions]), np.arange(start, start + 576))

    assert np.abs(logits - want.logits[0]).max() > 1e-3 * np.abs(want.logits).max()


@pytest.mark.parametrize("method", of_each(decoder_side.METHODS))
def test_reducing_nothing_changes_nothing(method, checkpoint, model):
    """The graph that reduces, told to keep all 576 tokens wherever it acts, equals transformers."""
    opened = open_checkpoint(str(checkpoint), None)
    step = opened.plan(method, 64, {}).steps[-1]
    idle = dataclasses.replace(step, keep=576, schedule=dict.fromkeys(step.schedule, 576))
    prefill = opened.with_weights(Prefill(opened.decoder_config, idle, torch.float32))
    after = opened.with_weights(WithPast(opened.decoder_config, torch.float32))
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 600, opened.decoder_config.hidden_size, generator=generator)
    with torch.inference_mode():
        logits, kept, *past = prefill(embeds[:, :597], torch.arange(597)[None], torch.arange(7, 583)[None])
        more, *_ = after(embeds[:, 597:], torch.arange(597, 600)[None], past)
        mask = torch.ones(1, 600, dtype=torch.int64)
        want = model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits

    assert kept[0].tolist() == list(range(576))
    torch.testing.assert_close(logits[:, 0], want[:, 596], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(more, want[:, 597:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", decoder_side.METHODS)
def test_a_budget_of_all_tokens_is_method_none(method, checkpoint):
    """Then nothing is reduced anywhere, and both have the same graphs."""
    opened = open_checkpoint(str(checkpoint), None)
    graphs = [
        [job.name for job in graph_jobs(opened, opened.plan(name, 576, {}), "fp32", targets.get("portable"))]
        for name in (method, "none")
    ]

    assert opened.plan(method, 576, {}).steps == ()
    assert graphs[0] == graphs[1]


@pytest.mark.exhaustive
def test_a_bundle_with_a_budget_of_all_tokens_answers_as_none(shallow, make_bundle, photographs):
    bundles = [make_bundle(shallow, 576, method=method, verify=False) for method in ("fastv", "none")]
    ids = [
        fico_export.load(b).generate(QUESTION, photographs[:1], max_new_tokens=32).token_ids for b in bundles
    ]

    assert ids[0] == ids[1]


@pytest.fixture(scope="module")
def vlm(shallow, make_bundle):
    return fico_export.load(make_bundle(shallow, 64, method="fastv", verify=False))


def test_a_further_turn_goes_on_from_the_shortened_caches(vlm, photographs):
    chat = vlm.chat()
    first = chat.ask(QUESTION, [photographs[0]], max_new_tokens=4)
    before = chat.cache_lengths
    second = chat.ask("And what else?", max_new_tokens=4)

    assert second.cached_tokens >= first.prompt_tokens
    assert {a - b for a, b in zip(chat.cache_lengths, before, strict=True)} == {
        chat.cache_lengths[0] - before[0]
    }
    assert len(set(chat.cache_lengths)) == 2


def test_another_question_about_the_same_picture_reduces_anew(vlm, photographs):
    """What is kept depends on the question: nothing of the last prompt may be reused."""
    picture = vlm.encode_image(photographs[0])
    chat = vlm.chat()
    chat.ask(QUESTION, [picture], max_new_tokens=4)
    chat.restart()
    again = chat.ask("How many?", [picture], max_new_tokens=4)

    assert again.cached_tokens == 0
    assert again.token_ids == vlm.generate("How many?", [picture], max_new_tokens=4).token_ids


def test_text_before_the_picture_and_no_picture_at_all(vlm, shallow, make_bundle, photographs):
    plain = fico_export.load(make_bundle(shallow, 576, method="none", verify=False))
    assert (
        vlm.generate("Hello", max_new_tokens=8).token_ids
        == plain.generate("Hello", max_new_tokens=8).token_ids
    )

    chat = vlm.chat()
    chat.ask("Hello", max_new_tokens=4)
    shown = chat.ask(QUESTION, [photographs[0]], max_new_tokens=4)

    assert shown.cached_tokens == 0
    assert chat.cache_lengths[-1] == chat.cache_lengths[0] - 576 + 64


def test_a_second_picture_is_refused(vlm, photographs):
    with pytest.raises(InputError, match="takes one"):
        vlm.generate(QUESTION, photographs[:2])
    chat = vlm.chat()
    chat.ask(QUESTION, [photographs[0]], max_new_tokens=2)
    with pytest.raises(InputError, match="takes one"):
        chat.ask("And this?", [photographs[1]])


# At 576 tokens the bundle of the README's own example is verified: tests/project/test_readme.py.
@pytest.mark.parametrize(
    ("method", "precision", "settings"),
    [exhaustive("ficoco-vl", "fp32", {}), ("fastv", "fp16", {"layer": 1})],
)
def test_export_verifies_the_reducing_decoder(method, precision, settings, tiny_checkpoint, make_bundle):
    options = {"method": method, "precision": precision, "settings": settings}
    folder = make_bundle(tiny_checkpoint, 16, verify=False, **options)
    report = fico_export.verify(folder)

    assert not report.failed
    assert {"decoder_prefill", "decoder_with_past", "answers"} <= {check.graph for check in report.checks}


def test_the_two_decoder_graphs_share_one_file_of_weights(shallow, make_bundle):
    folder = make_bundle(shallow, 64, method="fastv", copy_weights=True, verify=False)
    names = {path.name for path in (folder / "onnx").iterdir()}

    names_of_axes = {
        dim
        for graph in fico_export.load(folder).manifest.graphs.values()
        for tensor in (*graph.inputs, *graph.outputs)
        for dim in tensor.shape
        if isinstance(dim, str)
    }

    assert all("_" in name for name in names_of_axes)  # none of the tracer's own symbols
    assert "decoder_with_past.onnx_data" in names
    assert "decoder_prefill.onnx_data" not in names
    assert (folder / "onnx/decoder_prefill.onnx").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("fastv", {"layer": 6}, "this decoder has 6 layers"),
        ("pyramiddrop", {"layers": "5,2"}, "ascending"),
        ("sparsevlm", {"layers": "2,5"}, "at most 4"),
        ("sparsevlm", {"layers": "two"}, "pattern"),
        ("ficoco-l", {"first_layer": 5}, "nothing is left to shorten"),
    ],
)
def test_layers_that_the_decoder_does_not_have_are_refused(method, settings, words, checkpoint, tmp_path):
    with pytest.raises(ConfigError) as refused:
        fico_export.export(checkpoint, 64, method=method, settings=settings, out=tmp_path / "b")
    assert words in str(refused.value)


def test_compact_positions_are_refused(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="keep the ids"):
        fico_export.export(checkpoint, 64, method="fastv", positions="compact", out=tmp_path / "b")
