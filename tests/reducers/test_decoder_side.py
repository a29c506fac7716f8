"""One application of each method that acts in a decoder's layer: equal to NumPy over a hundred seeds, and well behaved."""

import os
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from reference import decoder_side

from fico_export import reducers
from fico_export.exporter.trace import simplify, trace
from fico_export.models.ports import GraphModule, fixed
from fico_export.reducers.base.cues import Cues, Prompt
from fico_export.reducers.base.reducer import Reducer, Site
from fico_export.reducers.stages.select import take

HEADS, START, TEXT, CHANNELS = 4, 5, 23, 64
SEEDS = {64: 100, 576: int(os.environ.get("FICO_SEEDS", "4"))}  # a hundred of the large ones take minutes
METHODS = [
    name
    for name in reducers.names()
    if isinstance(record := reducers.get(name), Reducer) and record.site is Site.DECODER_LAYER
]
HUGE = 65504.0  # the largest FP16 number


@dataclass
class Rows:
    """A layer's rows: hidden states, embeddings, queries and keys [B, S, A], the image's n of them from row 5 on."""

    hidden: torch.Tensor
    embeds: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor

    def of(self, i):
        return Rows(*(t[i : i + 1] for t in self))

    def __iter__(self):
        return iter((self.hidden, self.embeds, self.queries, self.keys))


def random_rows(seed, n=576, batch=1):
    """Clustered hidden states, so that some are near-duplicates as in images; queries sharp enough to choose."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, START + n + TEXT, CHANNELS)
    centres = torch.randn(batch, 12, CHANNELS, generator=generator)
    choice = torch.randint(0, 12, shape[:2], generator=generator)
    hidden = take(centres, choice) + 0.7 * torch.randn(shape, generator=generator)
    embeds, queries, keys = (torch.randn(shape, generator=generator) for _ in range(3))
    return Rows(hidden, 0.3 * embeds, queries, keys)


def computed(method, rows, keep, **settings):
    """(tokens [B, K, C], indices [B, K]) of the package."""
    batch, total = rows.hidden.shape[:2]
    n = total - START - TEXT
    visual = (START + torch.arange(n)).expand(batch, -1)
    text = (torch.arange(total) >= START + n).expand(batch, -1)
    prompt = Prompt(rows.embeds, text, take(rows.embeds, visual), rows.queries, rows.keys, visual)
    cues = Cues(
        (24, 24), visual - START, take(rows.queries, visual), take(rows.keys, visual), HEADS, prompt=prompt
    )
    reducer = reducers.get(method)
    reduced = reducer.apply(take(rows.hidden, visual), cues, keep, reducer.parse_options(settings))
    return reduced.tokens, reduced.indices


def expected(method, rows, keep, **settings):
    """Likewise of the reference, for a batch of one."""
    hidden, embeds, queries, keys = (t[0].double().numpy() for t in rows)
    n = len(hidden) - START - TEXT
    heads = [x.reshape(len(x), HEADS, -1).transpose(1, 0, 2) for x in (queries, keys)]
    logits = heads[0] @ heads[1].transpose(0, 2, 1) / np.sqrt(heads[0].shape[-1])
    rating = decoder_side.raters(embeds[START : START + n], embeds[START + n :])
    options = decoder_side._DEFAULTS[method] | settings
    return decoder_side._reduce(method, hidden, logits, START, n, keep, rating, options)


def nearly_rates(method, rows):
    """Whether a word is so near to the bound between raters and others that FP32 cannot tell on which side it is."""
    if not reducers.get(method).cues >= {"prompt", "text_attention"}:
        return False
    embeds = rows.embeds[0].double()
    visual, text = embeds[START:-TEXT], embeds[-TEXT:]
    shares = (visual @ text.T).softmax(-1).mean(0)
    return bool(((shares / shares.mean() - 1).abs() < 1e-5).any())


def test_every_such_method_has_a_reference():
    assert sorted(decoder_side.METHODS) == METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "keep"), [(64, 16), (64, 40), (64, 1), (576, 16), (576, 64), (576, 192)])
def test_torch_equals_the_reference(method, n, keep):
    for seed in range(SEEDS[n]):
        rows = random_rows(seed, n)
        if nearly_rates(method, rows):
            continue
        want_tokens, want_indices = expected(method, rows, keep)
        got_tokens, got_indices = computed(method, rows, keep)

        np.testing.assert_array_equal(got_indices[0], want_indices, err_msg=f"seed {seed}")
        np.testing.assert_allclose(got_tokens[0], want_tokens, atol=1e-4, err_msg=f"seed {seed}")


@pytest.mark.parametrize("method", METHODS)
def test_onnx_runtime_equals_torch_over_a_hundred_seeds(method, tmp_path):
    names = ["hidden", "embeds", "queries", "keys"]

    class Alone(GraphModule):
        def ports(self):
            return fixed(dict(zip(names, random_rows(0), strict=True)), ["tokens", "indices"])

        def forward(self, hidden, embeds, queries, keys):
            return computed(method, Rows(hidden, embeds, queries, keys), 64)

    graph = trace(Alone, 18)
    simplify(graph)
    graph.ir_version = 10
    ir.save(graph, tmp_path / "reducer.onnx")
    session = ort.InferenceSession(str(tmp_path / "reducer.onnx"))
    read = {i.name for i in session.get_inputs()}
    ties = 0
    for seed in range(100):
        rows = random_rows(seed)
        if nearly_rates(method, rows):
            ties += 1
            continue
        feeds = {name: t.numpy() for name, t in zip(names, rows, strict=True) if name in read}
        got_tokens, got_indices = session.run(None, feeds)
        want_tokens, want_indices = computed(method, rows, 64)

        np.testing.assert_array_equal(got_indices, want_indices, err_msg=f"seed {seed}")
        np.testing.assert_allclose(got_tokens, want_tokens, atol=1e-4, err_msg=f"seed {seed}")
    assert ties <= 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2, 9, 50])
def test_exactly_k_tokens_ascending_distinct_in_range(method, n):
    for keep in range(1, n + 1):
        tokens, indices = computed(method, random_rows(keep, n), keep)

        assert tokens.shape == (1, keep, CHANNELS)
        assert indices.shape == (1, keep)
        assert (indices.diff(dim=1) > 0).all()
        assert indices.min() >= 0
        assert indices.max() < n


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_a_loop(method):
    rows = random_rows(0, 60, batch=3)
    tokens, indices = computed(method, rows, 20)
    for i in range(3):
        alone = computed(method, rows.of(i), 20)

        assert torch.equal(indices[i], alone[1][0])
        torch.testing.assert_close(tokens[i], alone[0][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1.0, HUGE, -HUGE, 1e-30], ids=str)
def test_constant_zero_and_huge_inputs_stay_finite(method, value):
    rows = Rows(*(torch.full((1, START + 40 + TEXT, CHANNELS), value) for _ in range(4)))
    tokens, indices = computed(method, rows, 7)

    assert tokens.isfinite().all()
    assert indices.unique().numel() == 7


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reads_only_the_cues_it_declares(method):
    read = set()
    offered = {
        "logits",
        "attention",
        "mean_keys",
        "last_attention",
        "text_attention",
        "text_logits",
        "prompt",
    }

    class Spy(Cues):
        def __getattribute__(self, name):
            if name in offered:
                read.add(name)
            return super().__getattribute__(name)

    rows = random_rows(0, 40)
    visual = START + torch.arange(40)[None]
    text = (torch.arange(START + 40 + TEXT) >= START + 40)[None]
    prompt = Prompt(rows.embeds, text, take(rows.embeds, visual), rows.queries, rows.keys, visual)
    spy = Spy((24, 24), visual, take(rows.queries, visual), take(rows.keys, visual), HEADS, prompt=prompt)
    read.clear()
    reducer = reducers.get(method)
    reducer.apply(take(rows.hidden, visual), spy, 8, reducer.parse_options({}))

    # Attention to the prompt is taken through `prompt` itself.
    assert read - {"prompt"} <= reducer.cues
    assert reducer.cues <= read
