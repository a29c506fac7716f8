"""Vision graphs that read the prompt, and CLIP's text graph, against references in NumPy and transformers."""

import dataclasses
import math
import warnings

import numpy as np
import onnxruntime as ort
import pytest
import torch
from checkpoints import write_siglip, write_tiny
from clip_checkpoints import write_clip
from exhaustive import exhaustive
from reducer_cases import computed, expected, random_inputs
from reference import greedy, text_conditioned
from transformers import AutoTokenizer, CLIPModel

from fico_export import models, reducers
from fico_export.bundle.manifest import CLIP_TOKENIZER, Graph, TensorSpec
from fico_export.devices import targets
from fico_export.errors import ConfigError
from fico_export.exporter import checks, trace, weights
from fico_export.exporter.lint import lint
from fico_export.models.clip_text import open_clip
from fico_export.models.parts.transformers_quiet import quiet_transformers
from fico_export.runtime.backends.ort.sessions import open_session
from fico_export.runtime.inputs.clip_text import ClipText
from fico_export.runtime.inputs.preprocess import ImageProcessor

PROMPTS = ("What is in the picture?", "the the the", "Where is the RED sign, and what does it say? 42 🐈", "")


def saved(graph, checkpoint, path):
    """A traced graph with its weights, checked as an export does it, opened."""
    target = targets.get("portable")
    graph.ir_version = target.ir_version
    weights.bind(graph, checkpoint, lambda text: None)
    trace.simplify(graph)
    weights.save(graph, path, lambda count: None)
    checks.check_graph(path, target, static=True)
    assert not [v for name in targets.names() for v in lint(graph, targets.get(name))]
    return ort.InferenceSession(str(path))


def vision_session(model, plan, path, dtype=torch.float32):
    return saved(trace.trace(lambda: model.vision(plan, dtype), 18), model.checkpoint, path)


def torch_module(model, plan):
    with torch.device("meta"):
        module = model.vision(plan, torch.float32)
    return model.with_weights(module)


def before_and_after_the_projector(model, pixels):
    """V [N, C] and P [N, D] of all tokens, without a CLS token."""
    module, seen = torch_module(model, model.plan("none", None, {})), []
    module.multi_modal_projector.register_forward_hook(
        lambda _, given, result: seen.append((given[0], result))
    )
    with torch.inference_mode():
        module(torch.from_numpy(pixels))
    first = seen[0][0].shape[1] - math.prod(model.profile.patch_grid)
    return [t[0, first:].double().numpy() for t in seen[0]]


def words(model, seed, count, length):
    """text_embeds [1, length, D] of `count` tokens and their mask; what fills up the rows is noise."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, length, model.decoder_config.hidden_size, generator=generator)
    mask = (torch.arange(length) < count).to(torch.int64)[None]
    return rows, mask


@pytest.fixture(scope="module")
def model(shallow24_checkpoint):
    return models.load(shallow24_checkpoint)


@pytest.fixture(scope="module")
def with_clip(model, clip_checkpoint):
    return model.with_clip(open_clip(str(clip_checkpoint)))


@pytest.fixture(scope="module")
def transformers_clip(clip_checkpoint):
    quiet_transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CLIPModel.from_pretrained(clip_checkpoint).eval()


@pytest.fixture(scope="module")
def photographs_as_pixels(model, photographs):
    processor = ImageProcessor.from_config(model.files().preprocessor)
    return [processor(image) for image in photographs]


def projected_rows(clip, features):
    """V [N, C] in CLIP's space, by transformers' own modules."""
    with torch.inference_mode():
        return clip.visual_projection(
            clip.vision_model.post_layernorm(torch.from_numpy(features).float())
        ).numpy()


@pytest.mark.parametrize("keep", [exhaustive(16), 64])
def test_words_and_patches_are_covered_as_the_reference_covers_them(
    keep, model, photographs_as_pixels, tmp_path
):
    plan = model.plan("mmtok", keep, {"text_length": 40})
    session, module = vision_session(model, plan, tmp_path / "vision.onnx"), torch_module(model, plan)
    shapes = {i.name: (i.shape, i.type) for i in session.get_inputs()}
    assert shapes["text_embeds"] == ([1, 40, 64], "tensor(float)")
    assert shapes["text_mask"] == ([1, 40], "tensor(int64)")
    chosen = set()
    for i, pixels in enumerate(photographs_as_pixels):
        features, projected = before_and_after_the_projector(model, pixels)
        embeds, mask = words(model, i, 7 + 11 * (i % 4), 40)
        _, want = greedy.mmtok(features, projected, embeds[0], mask[0], keep)
        with torch.inference_mode():
            in_torch, torch_index = module(torch.from_numpy(pixels), embeds, mask)
        feeds = {"pixel_values": pixels, "text_embeds": embeds.numpy(), "text_mask": mask.numpy()}
        in_onnx, index = session.run(None, feeds)

        np.testing.assert_array_equal(torch_index[0], want)
        np.testing.assert_array_equal(index[0], want)
        for got in (in_torch, in_onnx):
            np.testing.assert_allclose(got[0], projected[want], atol=1e-4)
        chosen.add(tuple(want))
    assert len(chosen) == len(photographs_as_pixels)


def test_another_text_keeps_other_tokens_and_what_fills_up_the_rows_does_not_count(
    model, photographs_as_pixels
):
    module = torch_module(model, model.plan("mmtok", 16, {"text_length": 40}))
    pixels = torch.from_numpy(photographs_as_pixels[0])
    embeds, mask = words(model, 0, 9, 40)
    other = torch.where(mask[..., None] > 0, embeds, 3 * torch.ones_like(embeds))
    with torch.inference_mode():
        index, same = module(pixels, embeds, mask)[1], module(pixels, other, mask)[1]
        differs = module(pixels, words(model, 1, 9, 40)[0], mask)[1]
        without = module(pixels, embeds, torch.zeros_like(mask))

    assert torch.equal(index, same)
    assert not torch.equal(index, differs)
    assert without[0].isfinite().all()
    features, projected = before_and_after_the_projector(model, pixels.numpy())
    alone = greedy.mmtok(features, projected, embeds[0], mask[0], 16, weight=0.0)[1]
    np.testing.assert_array_equal(without[1][0], alone)


@pytest.mark.parametrize(
    "keep", [exhaustive(16), 48]
)  # below the 64 channels: beyond their rank nothing is left to span
def test_the_volume_weighted_by_relevance_equals_the_reference(
    keep, with_clip, transformers_clip, photographs_as_pixels, tmp_path
):
    model = with_clip
    plan = model.plan("cdpruner", keep, {})
    session, module = vision_session(model, plan, tmp_path / "vision.onnx"), torch_module(model, plan)
    assert {i.name: i.shape for i in session.get_inputs()}["clip_text"] == [1, 24]
    chosen = set()
    for i, pixels in enumerate(photographs_as_pixels):
        features, projected = before_and_after_the_projector(model, pixels)
        segments = np.random.RandomState(i).randn(1 + i % 3, 24).astype(np.float32)
        segments /= np.linalg.norm(segments, axis=-1, keepdims=True)
        _, want = text_conditioned.cdpruner(
            projected, projected_rows(transformers_clip, features), segments, keep
        )
        text = segments.mean(0, keepdims=True)
        with torch.inference_mode():
            in_torch, torch_index = module(torch.from_numpy(pixels), torch.from_numpy(text))
        in_onnx, index = session.run(None, {"pixel_values": pixels, "clip_text": text})

        np.testing.assert_array_equal(torch_index[0], want)
        np.testing.assert_array_equal(index[0], want)
        for got in (in_torch, in_onnx):
            np.testing.assert_allclose(got[0], projected[want], atol=1e-4)
        chosen.add(tuple(want))
    assert len(chosen) == len(photographs_as_pixels)


def objective(method, features, projected, given, index):
    """What the method maximises, of a set of tokens: the weighted coverage, or the log of the volume."""
    if method == "mmtok":
        embeds, mask = given
        n = len(features)
        unit = [
            x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (features, projected, embeds[mask > 0])
        ]
        rows = [np.exp(unit[2] @ unit[1].T / 0.02), np.exp(unit[0] @ unit[0].T / 0.2)]
        shares = [(r / r.sum(1, keepdims=True))[:, index].max(1) for r in rows]
        return 0.5 * shares[0].mean() + 0.5 * shares[1].sum() / n
    relevance, unit = given, projected / np.linalg.norm(projected, axis=-1, keepdims=True)
    kernel = (relevance[:, None] * (unit @ unit.T) * relevance[None])[np.ix_(index, index)]
    return np.linalg.slogdet(kernel)[1]


@pytest.mark.parametrize("method", ["mmtok", "cdpruner"])
def test_an_fp16_graph_reaches_the_objective_of_fp32_within_a_hundredth(
    method, with_clip, transformers_clip, photographs_as_pixels, tmp_path
):
    model, keep = with_clip, 32
    session = vision_session(model, model.plan(method, keep, {}), tmp_path / "vision.onnx", torch.float16)
    for i, pixels in enumerate(photographs_as_pixels):
        features, projected = before_and_after_the_projector(model, pixels)
        feeds = {"pixel_values": pixels}
        if method == "mmtok":
            embeds, mask = (t.numpy() for t in words(model, i, 12, 128))
            feeds |= {"text_embeds": embeds.astype(np.float16), "text_mask": mask}
            given = (embeds[0], mask[0])
            want = greedy.mmtok(features, projected, *given, keep)[1]
        else:
            text = np.random.RandomState(i).randn(1, 24).astype(np.float32)
            text /= np.linalg.norm(text)
            feeds["clip_text"] = text
            rows = projected_rows(transformers_clip, features)
            given = text_conditioned.relevance(rows, text)
            want = text_conditioned.cdpruner(projected, rows, text, keep)[1]
        reduced, index = session.run(None, feeds)
        reached, best = (objective(method, features, projected, given, at) for at in (index[0], want))

        assert reduced.dtype == np.float16
        # Of the volume, the geometric mean over the tokens: its log is what the K of them add.
        assert abs(reached - best) <= (0.01 * best if method == "mmtok" else 0.01 * keep)


@pytest.mark.parametrize("method", ["mmtok", "cdpruner"])
def test_k_is_exact_at_every_budget_and_all_tokens_need_no_text(method, with_clip, photographs_as_pixels):
    pixels = torch.from_numpy(photographs_as_pixels[0])
    embeds, mask = words(with_clip, 0, 9, 128)
    text = (embeds, mask) if method == "mmtok" else (torch.nn.functional.normalize(torch.ones(1, 24)),)
    for keep in (1, 2, 33, 192, 575):
        with torch.inference_mode():
            features, index = torch_module(with_clip, with_clip.plan(method, keep, {}))(pixels, *text)

        assert features.shape == (1, keep, 64)
        assert (index.diff(dim=1) > 0).all()
    everything = torch_module(with_clip, with_clip.plan(method, 576, {}))
    assert everything.extra_inputs == ()
    with torch.inference_mode():
        assert everything(pixels)[0].shape == (1, 576, 64)


@pytest.mark.parametrize(
    "method", ["uniform@200,mmtok@16", "ficoco-v@200,mmtok@16", "uniform@200,cdpruner@16"]
)
def test_in_a_chain_the_tokens_that_are_left_are_the_ones_compared(
    method, with_clip, transformers_clip, photographs_as_pixels
):
    """What the last method gets before and after the projector are the same tokens."""
    pixels = torch.from_numpy(photographs_as_pixels[1])
    first, last = (part.partition("@")[0] for part in method.split(","))
    embeds, mask = words(with_clip, 0, 9, 128)
    clip_text = torch.nn.functional.normalize(torch.arange(1.0, 25)[None], dim=-1)
    text = (embeds, mask) if last == "mmtok" else (clip_text,)
    module, seen = torch_module(with_clip, with_clip.plan(first, 200, {})), []
    module.multi_modal_projector.register_forward_hook(
        lambda _, given, result: seen.append((given[0], result))
    )
    with torch.inference_mode():
        _, left = module(pixels)
        got, index = torch_module(with_clip, with_clip.plan(method, 16, {}))(pixels, *text)
    features, projected = (t[0].double().numpy() for t in seen[0])
    if last == "mmtok":
        want = greedy.mmtok(features, projected, embeds[0], mask[0], 16)[1]
    else:
        rows = projected_rows(transformers_clip, features)
        want = text_conditioned.cdpruner(projected, rows, clip_text, 16)[1]

    np.testing.assert_array_equal(index[0], left[0].numpy()[want])
    np.testing.assert_allclose(got[0], projected[want], atol=1e-4)


def test_a_kept_cls_token_is_no_candidate(tmp_path, clip_checkpoint, photographs):
    llava = {"vision_feature_select_strategy": "full"}
    model = models.load(write_tiny(tmp_path / "checkpoint", llava=llava))
    model = model.with_clip(open_clip(str(clip_checkpoint)))
    pixels = ImageProcessor.from_config(model.files().preprocessor)(photographs[0])
    features, projected = before_and_after_the_projector(model, pixels)
    embeds, mask = words(model, 0, 9, 128)
    with torch.inference_mode():
        got, index = torch_module(model, model.plan("mmtok", 16, {}))(torch.from_numpy(pixels), embeds, mask)
        clip_text = torch.nn.functional.normalize(torch.ones(1, 24))
        _, other = torch_module(model, model.plan("cdpruner", 16, {}))(torch.from_numpy(pixels), clip_text)
    want = greedy.mmtok(features, projected, embeds[0], mask[0], 15)[1]

    assert index[0].tolist() == [0, *(want + 1)]
    np.testing.assert_allclose(got[0, 1:], projected[want], atol=1e-4)
    assert other[0, 0] == 0
    assert other.shape == (1, 16)


def test_a_tower_without_a_cls_token_needs_nothing_else_for_words_and_is_not_clips(
    tmp_path, clip_checkpoint, photographs
):
    model = models.load(write_siglip(tmp_path / "checkpoint"))
    pixels = ImageProcessor.from_config(model.files().preprocessor)(photographs[0])
    features, projected = before_and_after_the_projector(model, pixels)
    embeds, mask = words(model, 0, 9, 128)
    want = greedy.mmtok(features, projected, embeds[0], mask[0], 16)[1]
    with torch.inference_mode():
        got, index = torch_module(model, model.plan("mmtok", 16, {}))(torch.from_numpy(pixels), embeds, mask)

    np.testing.assert_array_equal(index[0], want)
    np.testing.assert_allclose(got[0], projected[want], atol=1e-4)
    with pytest.raises(ConfigError, match="needs a tower with a CLS token"):
        model.with_clip(open_clip(str(clip_checkpoint))).plan("cdpruner", 16, {})


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("mmtok", {"weight": 0.0}),
        ("mmtok", {"weight": 1.0}),
        ("mmtok", {"text_temperature": 0.1}),
        ("mmtok", {"vision_temperature": 0.4}),
        ("cdpruner", {"theta": 0.0}),
        ("cdpruner", {"theta": 0.5}),
        ("cdpruner", {"theta": 0.95}),
    ],
    ids=str,
)
def test_every_option_equals_the_reference(method, settings):
    for seed in range(3):
        inputs = random_inputs(seed, grid=(12, 12), channels=64)
        got, want = computed(method, inputs, 16, settings), expected(method, inputs, 16, settings)

        np.testing.assert_array_equal(got[1][0], want[1])
        np.testing.assert_allclose(got[0][0], want[0], atol=1e-5)


def test_where_all_are_equally_relevant_the_volume_alone_counts():
    inputs = random_inputs(0, grid=(12, 12), channels=64)
    cues = inputs.cues()
    alike = dataclasses.replace(cues, clip_tokens=torch.ones_like(cues.clip_tokens))
    reducer = reducers.get("cdpruner")
    indices = reducer.apply(inputs.tokens, alike, 16, reducer.parse_options({})).indices

    assert torch.equal(indices, computed("dpp", inputs, 16)[1])


def test_beyond_the_rank_of_the_tokens_the_lower_index_counts():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    inputs = random_inputs(0, grid=(6, 6), channels=8)
    repeated = dataclasses.replace(inputs, tokens=basis[torch.arange(36) % 8][None])

    assert computed("dpp", repeated, 12)[1][0].tolist() == list(range(12))


@pytest.mark.parametrize("old_eos", [False, True], ids=["eos of the tokenizer", "eos 2"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_text_graph_equals_transformers(old_eos, precision, tmp_path):
    folder = write_clip(tmp_path / "clip", old_eos=old_eos, seed=3)
    clip, dtype = open_clip(str(folder)), torch.float32 if precision == "fp32" else torch.float16
    # The names under which a bundle's export binds them.
    checkpoint = models.load(write_tiny(tmp_path / "tiny")).with_clip(clip).checkpoint
    session = saved(trace.trace(lambda: clip.text_graph(dtype), 18), checkpoint, tmp_path / "clip_text.onnx")
    quiet_transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            want = reference.get_text_features(**inputs).pooler_output[0].numpy()
        length = inputs["input_ids"].shape[1]
        end = int(inputs["input_ids"][0, -1])
        ids = np.full((1, 77), end, np.int64)
        ids[:, :length] = inputs["input_ids"]
        rows.append(session.run(None, {"input_ids": ids})[0][0])

        assert rows[-1].dtype == np.float32
        assert np.linalg.norm(rows[-1]) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(
            rows[-1], want / np.linalg.norm(want), atol=1e-5 if precision == "fp32" else 1e-2
        )
    assert abs(np.corrcoef(rows)[np.triu_indices(4, 1)]).max() < 0.999  # the text matters


def test_a_prompt_is_cut_into_segments_whose_mean_counts(
    tmp_path, clip_checkpoint, transformers_clip, monkeypatch
):
    clip = open_clip(str(clip_checkpoint))
    checkpoint = models.load(write_tiny(tmp_path / "tiny")).with_clip(clip).checkpoint
    saved(trace.trace(lambda: clip.text_graph(torch.float32), 18), checkpoint, tmp_path / "clip_text.onnx")
    (tmp_path / CLIP_TOKENIZER).write_text(clip.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(clip_checkpoint)

    class Manifest:
        def graph(self, name):
            spec = TensorSpec(name="input_ids", dtype="int64", shape=[1, 77])
            return Graph(file="clip_text.onnx", inputs=[spec], outputs=[], weight_bytes=0)

        def require(self, name):
            return name

    text = ClipText(tmp_path, Manifest(), open_session(tmp_path / "clip_text.onnx"))
    for prompt in (*PROMPTS, "what is the thing " * 20, "x" * 75, "x" * 76, "x" * 151):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        begin, end = tokenizer("")["input_ids"]
        pieces = [ids[i : i + 75] for i in range(0, max(1, len(ids)), 75)]
        want = []
        for piece in pieces:
            framed = torch.tensor([[begin, *piece, end]])
            with torch.inference_mode():
                row = transformers_clip.get_text_features(framed).pooler_output[0].numpy()
            want.append(row / np.linalg.norm(row))

        assert len(text.segments(prompt)) == len(pieces)
        np.testing.assert_allclose(text(prompt), np.mean(want, axis=0)[None], atol=1e-5)
    assert len(text.segments("x" * 151)) == 3
