"""Several sequences in one run say what each says alone: prompts of unequal lengths, images, some that join and leave."""

import gc
import json

import numpy as np
import pytest
from checkpoints import write_tiny

import fico_export
from fico_export.bundle.manifest import Manifest
from fico_export.errors import BundleError, ConfigError, EngineError
from fico_export.runtime.backends.base import Step
from fico_export.runtime.backends.ort import decoder as runtime_decoder
from fico_export.runtime.inputs.prompt import Message

BATCH, ROWS, TURNS = 4, 160, 12
STATIC = {"max_context": ROWS}
FORMS = {
    "plain": {},
    "fused": {"target": "ort"},
    "external": {"target": "trt-10.3", **STATIC},
    "in place": {"target": "rtx", **STATIC},
    "plain, fp16": {"precision": "fp16"},
    "fused, int4": {"target": "ort", "precision": "int4", "block": 32},
    "in place, fp16": {"target": "rtx", "precision": "fp16", **STATIC},
}
ALL_LOGITS = ("plain", "plain, fp16")
LAST_ALONE = [form for form in FORMS if form not in ALL_LOGITS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Two query heads for each key-value head."""
    folder = tmp_path_factory.mktemp("checkpoint") / "batch"
    return write_tiny(folder, vision={"num_hidden_layers": 2}, seed=6)


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def vlm(form, checkpoint, make_bundle):
    folder = make_bundle(checkpoint, 16, max_batch=BATCH, verify=False, **FORMS[form])
    return fico_export.load(folder)


@pytest.fixture(scope="module")
def prompts(vlm, photographs):
    """Embeddings [S, C] of five prompts, two with an image: of 3 to 40 tokens."""
    asked = [
        ("Hi", None),
        ("What is in this picture?", 0),
        ("Why is it so?", None),
        ("And in this?", 2),
        ("x", None),
    ]
    return [embedded(vlm, text, None if at is None else photographs[at]) for text, at in asked]


def embedded(vlm, text, picture):
    ids = np.array(vlm.formatter.encode([Message("user", text, int(picture is not None))], 16))
    visual = ids == vlm.manifest.tokens.image_id
    embeds = vlm.embed(np.where(visual, 0, ids).tolist())
    if picture is not None:
        embeds[visual] = vlm.encode_image(picture).features
    return embeds


class Sequence:
    """A prompt and what was said after it: tokens, and the logits [V] that chose each."""

    def __init__(self, vlm, prompt):
        self.vlm, self.cache = vlm, vlm.decoder.new_cache()
        self.next, self.at, self.tokens, self.logits = prompt, 0, [], []

    @property
    def step(self):
        return Step(self.cache, self.next, np.arange(self.at, self.at + len(self.next))[None])

    def take(self, logits):
        self.at += len(self.next)
        self.logits.append(logits)
        self.tokens.append(int(logits.argmax()))
        self.next = self.vlm.embed(self.tokens[-1:])


def go(vlm, *sequences, times=1):
    for _ in range(times):
        steps = vlm.decoder.step([each.step for each in sequences])
        for each, logits in zip(sequences, steps, strict=True):
            each.take(logits)


def alone(vlm, prompt, times):
    sequence = Sequence(vlm, prompt)
    go(vlm, sequence, times=times)
    return sequence


def require_equal(vlm, got, want):
    assert got.tokens == want.tokens
    tolerance = {"fp32": 1e-4, "fp16": 2e-2, "int4": 1e-3}[vlm.manifest.precision]
    np.testing.assert_allclose(got.logits, want.logits, atol=tolerance)


def counted(vlm, monkeypatch):
    """How many sequences each run of the graph had."""
    sizes, step = [], vlm.decoder._step
    monkeypatch.setattr(
        vlm.decoder, "_step", lambda steps, *rest: sizes.append(len(steps)) or step(steps, *rest)
    )
    return sizes


def test_a_batch_says_what_each_says_alone(vlm, prompts, monkeypatch):
    want = [alone(vlm, prompt, TURNS) for prompt in prompts[:BATCH]]
    got = [Sequence(vlm, prompt) for prompt in prompts[:BATCH]]
    sizes = counted(vlm, monkeypatch)
    go(vlm, *got, times=TURNS)

    assert sizes == [1] * BATCH + [BATCH] * (TURNS - 1)
    assert len({tuple(each.tokens) for each in want}) > 1
    for one, other in zip(got, want, strict=True):
        require_equal(vlm, one, other)


def test_sequences_join_and_leave_in_any_order(vlm, prompts):
    """Prompts run beside single tokens; a slot that was given back is taken again; one rests and goes on."""
    a, b, c, d = (Sequence(vlm, prompt) for prompt in prompts[:4])
    go(vlm, a)
    go(vlm, b, a, times=2)
    go(vlm, c, d, b)
    go(vlm, d, a, times=3)
    gone = b.tokens
    del b
    e = Sequence(vlm, prompts[4])
    go(vlm, a, e, c, times=4)
    go(vlm, d)
    go(vlm, c, a, d, e, times=2)

    for sequence, prompt in zip((a, c, d, e), (prompts[0], prompts[2], prompts[3], prompts[4]), strict=True):
        require_equal(vlm, sequence, alone(vlm, prompt, len(sequence.tokens)))
    assert gone == alone(vlm, prompts[1], len(gone)).tokens


def test_prompts_of_one_token_run_together_from_empty_caches(vlm, prompts):
    old, new = Sequence(vlm, prompts[1]), [Sequence(vlm, prompt[:1]) for prompt in prompts[2:4]]
    go(vlm, *new)
    go(vlm, old)
    last = Sequence(vlm, prompts[0][:1])
    go(vlm, last, old, *new, times=3)

    for sequence, prompt in (
        (old, prompts[1]),
        (new[0], prompts[2][:1]),
        (new[1], prompts[3][:1]),
        (last, prompts[0][:1]),
    ):
        require_equal(vlm, sequence, alone(vlm, prompt, len(sequence.tokens)))


def test_more_than_one_run_takes_are_run_in_several(vlm, prompts, monkeypatch):
    assert vlm.decoder.max_batch == vlm.manifest.max_batch == BATCH
    sequences = [Sequence(vlm, prompts[i % 5]) for i in range(2 * BATCH + 1)]
    go(vlm, *sequences)
    sizes = counted(vlm, monkeypatch)
    go(vlm, *sequences, times=3)

    assert sorted(sizes) == sorted([BATCH, BATCH, 1] * 3)
    for i, sequence in enumerate(sequences):
        require_equal(vlm, sequence, alone(vlm, prompts[i % 5], 4))


def test_a_prompt_in_pieces_beside_single_tokens(vlm, prompts, monkeypatch):
    monkeypatch.setattr(runtime_decoder, "CHUNK", 7)
    first, second = Sequence(vlm, prompts[0]), Sequence(vlm, prompts[1])
    go(vlm, first, times=3)
    go(vlm, first, second, times=3)

    require_equal(vlm, first, alone(vlm, prompts[0], 6))
    require_equal(vlm, second, alone(vlm, prompts[1], 3))


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_step_that_fails_leaves_every_cache_as_it_was(failing, vlm, prompts, monkeypatch):
    """A run of single tokens, and two prompts that run by themselves."""
    old, new = [Sequence(vlm, p) for p in prompts[:2]], [Sequence(vlm, p) for p in prompts[2:4]]
    go(vlm, *old, times=2)
    lengths = [each.cache.lengths for each in (*old, *new)]
    run, calls = vlm.decoder._step, []

    def fails(*given):
        calls.append(given)
        found = run(*given)
        if len(calls) == failing:
            raise EngineError("no memory", fix="free some")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(vlm.decoder, "_step", fails)
        with pytest.raises(EngineError):
            vlm.decoder.step([each.step for each in (*old, *new)])

    assert [each.cache.lengths for each in (*old, *new)] == lengths
    go(vlm, *old, *new, times=3)
    for sequence, prompt in zip((*old, *new), prompts, strict=False):
        require_equal(vlm, sequence, alone(vlm, prompt, len(sequence.tokens)))


def test_tokens_taken_back_in_a_batch_leave_no_trace(vlm, prompts):
    first, second = Sequence(vlm, prompts[0]), Sequence(vlm, prompts[1])
    go(vlm, first, second, times=5)
    first.cache.drop_last(2)
    first.at, first.tokens, first.logits = first.at - 2, first.tokens[:3], first.logits[:3]
    first.next = vlm.embed(first.tokens[-1:])
    go(vlm, second, first, times=3)

    require_equal(vlm, first, alone(vlm, prompts[0], 6))
    require_equal(vlm, second, alone(vlm, prompts[1], 8))


@pytest.mark.parametrize("form", ALL_LOGITS, indirect=True)
def test_logits_after_every_token(form, vlm, prompts, monkeypatch):
    monkeypatch.setattr(runtime_decoder, "CHUNK", 7)
    embeds = prompts[1]
    steps = [Step(vlm.decoder.new_cache(), e, np.arange(len(e))[None]) for e in (embeds, prompts[4])]
    found = vlm.decoder.step(steps, rows="all")

    assert [len(f) for f in found] == [len(embeds), len(prompts[4])]
    for length in (1, 9, len(embeds)):
        np.testing.assert_allclose(
            found[0][length - 1],
            alone(vlm, embeds[:length], 1).logits[0],
            atol=2e-2 if "16" in form else 1e-4,
        )
    singles = [step._replace(embeds=step.embeds[:1], positions=step.positions[:, :1] + 50) for step in steps]
    assert [one.shape for one in vlm.decoder.step(singles, rows="all")] == [(1, len(found[0][0]))] * 2


@pytest.mark.parametrize("form", LAST_ALONE, indirect=True)
def test_logits_that_the_graph_does_not_compute_are_refused(form, vlm, prompts):
    sequence = Sequence(vlm, prompts[0])
    with pytest.raises(ConfigError, match="after the last one alone") as refused:
        vlm.decoder.step([sequence.step], rows="all")

    assert "--target portable" in refused.value.fix
    assert max(sequence.cache.lengths) == 0


@pytest.mark.parametrize("form", ["external", "in place"], indirect=True)
def test_a_full_cache_stays_whole_beside_others(form, vlm, prompts):
    """Its slot has no row left that a run of the others could write to."""
    full, prompt = Sequence(vlm, np.tile(prompts[1], (9, 1))[: ROWS - 2]), prompts[3]
    go(vlm, full, times=2)
    other, third = Sequence(vlm, prompt), Sequence(vlm, prompts[0])
    go(vlm, other, third, times=4)
    assert full.cache.lengths[0] == ROWS - 1
    go(vlm, full, other)

    require_equal(vlm, full, alone(vlm, np.tile(prompts[1], (9, 1))[: ROWS - 2], 3))
    require_equal(vlm, other, alone(vlm, prompt, 5))


@pytest.mark.parametrize("form", ["external", "in place"], indirect=True)
def test_what_a_slot_held_before_does_not_reach_its_next_cache(form, vlm, prompts):
    """Not a number, as of a conversation that overflowed."""
    stays, leaves = Sequence(vlm, prompts[0]), Sequence(vlm, prompts[1])
    go(vlm, stays, leaves)
    assert leaves.cache.pool is stays.cache.pool
    slot = leaves.cache.slot
    for buffer in stays.cache.pool.buffers:
        buffer[slot] = np.nan
    del leaves
    comes = Sequence(vlm, prompts[1])
    assert comes.cache.slot == slot
    go(vlm, comes, stays, times=3)

    require_equal(vlm, comes, alone(vlm, prompts[1], 3))


@pytest.mark.parametrize("form", ["fused", "in place"], indirect=True)
def test_no_cache_is_copied_from_step_to_step(form, vlm, prompts):
    gc.collect()  # caches that errors of tests before this one hold
    sequences = [Sequence(vlm, prompt) for prompt in prompts[:BATCH]]
    go(vlm, *sequences)
    pool = sequences[0].cache.pool
    before = [id(buffer) for buffer in pool.buffers]
    go(vlm, *sequences, times=5)

    assert {id(each.cache.pool) for each in sequences} == {id(pool)}
    assert [id(buffer) for buffer in pool.buffers] == before


@pytest.mark.parametrize("form", ["fused", "external", "in place"], indirect=True)
def test_caches_of_two_pools_come_together(form, vlm, prompts, monkeypatch):
    gc.collect()
    sequences = [Sequence(vlm, prompts[i % 5]) for i in range(2 * BATCH)]
    go(vlm, *sequences)
    left = [sequences[i] for i in (0, 3, 5)]
    del sequences
    sizes = counted(vlm, monkeypatch)
    go(vlm, *left, times=3)

    assert sizes == [3] * 3
    for sequence, prompt in zip(left, (prompts[0], prompts[3], prompts[0]), strict=True):
        require_equal(vlm, sequence, alone(vlm, prompt, 4))


@pytest.mark.parametrize("form", ["plain"], indirect=True)
def test_a_batch_of_the_same_sequences_is_not_put_together_again(form, vlm, prompts, monkeypatch):
    sequences = [Sequence(vlm, prompt) for prompt in prompts[:3]]
    go(vlm, *sequences, times=2)
    batch = sequences[0].cache.batch
    assert batch.pads.count(0) == 1
    made = []
    store = type(vlm.decoder._store)
    real = store._on_device
    monkeypatch.setattr(store, "_on_device", lambda self, array: made.append(array) or real(self, array))
    go(vlm, *sequences, times=3)
    assert made == []
    go(vlm, *sequences[:2])

    assert made
    assert len(sequences[2].cache.batch.pads) == 1  # it keeps nothing of the others


def test_the_manifest_says_how_many(vlm):
    """One where it says nothing, as those of earlier versions; and what a graph holds is held against it."""
    written = json.loads((vlm.folder / "manifest.json").read_text())
    assert written["max_batch"] == written["request"]["max_batch"] == BATCH
    if vlm.manifest.cache_rows is None:
        del written["max_batch"]
        assert Manifest.parse(json.dumps(written), "it").max_batch == 1
    else:
        written["max_batch"] = 2
        with pytest.raises(BundleError, match="and max_batch is 2"):
            Manifest.parse(json.dumps(written), "it")


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ({"max_batch": 0}, "max_batch is 0", "1 to 256"),
        ({"max_batch": 257}, "max_batch is 257", "1 to 256"),
        (
            {"max_batch": 2, "method": "fastv", "settings": {"layer": 1}},
            "--max-batch 2 with --method fastv",
            "before the decoder",
        ),
    ],
    ids=str,
)
def test_a_batch_that_no_decoder_runs_is_refused(options, what, fix, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=what) as refused:
        fico_export.export(checkpoint, 16, out=tmp_path / "b", **options)

    assert fix in refused.value.fix
    assert not (tmp_path / "b").exists()
