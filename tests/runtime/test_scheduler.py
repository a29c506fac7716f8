"""Sequences that run together answer as each does alone, whichever come, go and end between."""

import pytest

import fico_export
from fico_export.errors import ConfigError, EngineError
from fico_export.runtime import scheduler
from fico_export.runtime.sampling import Sampling

QUESTIONS = ("What?", "Where is the red sign, and what does it say", "Why", "what is in this picture")
BUNDLES = {
    "portable": {},
    "ort": {"target": "ort"},
    "static": {"target": "trt-10.3", "max_context": 160},
    "in-place": {"target": "trt-11", "max_context": 160},
    "in-decoder": {"method": "fastv", "settings": {"layer": 1}},
}


@pytest.fixture(scope="module", params=BUNDLES)
def vlm(request, tiny_checkpoint, make_bundle):
    options = BUNDLES[request.param]
    batch = {} if "method" in options else {"max_batch": 4}
    return fico_export.load(make_bundle(tiny_checkpoint, 16, verify=False, **batch, **options))


def test_each_answers_as_alone(vlm, photographs):
    """Prompts of other lengths, with an image and without, answers of other lengths, one of them sampled."""
    asked = [(QUESTIONS[i], photographs[i : i + 1] if i % 2 else [], 3 + 4 * i) for i in range(4)]
    hot = [None, Sampling(temperature=1.0, seed=7), None, None]
    alone = [
        vlm.generate(text, shown, max_new_tokens=count, sampling=sampling)
        for (text, shown, count), sampling in zip(asked, hot, strict=True)
    ]
    chats = [vlm.chat() for _ in asked]
    running = [
        chat.begin(text, shown, max_new_tokens=count, sampling=sampling)
        for chat, (text, shown, count), sampling in zip(chats, asked, hot, strict=True)
    ]
    pieces = {id(sequence): "" for sequence in running}
    for sequence, piece in scheduler.run(vlm, running):
        pieces[id(sequence)] += piece

    for sequence, want in zip(running, alone, strict=True):
        got = sequence.answer
        assert got.token_ids == want.token_ids
        assert got.text == want.text == pieces[id(sequence)]
        assert got.finish_reason == want.finish_reason
        assert got.ttft_ms > 0
    assert all(chat.messages == () for chat in chats)


def test_sequences_join_while_others_are_under_way(vlm):
    alone = [vlm.generate(text, max_new_tokens=6).token_ids for text in QUESTIONS]
    running, live = [], []
    for text in QUESTIONS:
        running.append(vlm.chat().begin(text, max_new_tokens=6))
        live.append(running[-1])
        said = scheduler.step(vlm, live)
        live = [sequence for sequence, (_, reason) in zip(live, said, strict=True) if not reason]
    for _ in scheduler.run(vlm, live):
        pass

    assert [sequence.answer.token_ids for sequence in running] == alone


def test_a_step_that_fails_can_be_run_again(vlm, monkeypatch):
    chats = [vlm.chat() for _ in range(2)]
    want = [vlm.generate(text, max_new_tokens=4).token_ids for text in QUESTIONS[:2]]
    running = [chat.begin(text, max_new_tokens=4) for chat, text in zip(chats, QUESTIONS, strict=False)]
    scheduler.step(vlm, running)
    with monkeypatch.context() as patch:
        patch.setattr(vlm.decoder, "step", lambda *_: (_ for _ in ()).throw(EngineError("out", fix="-")))
        with pytest.raises(EngineError):
            scheduler.step(vlm, running)
    for _ in scheduler.run(vlm, running):
        pass
    again = [chat.ask(text, max_new_tokens=4).token_ids for chat, text in zip(chats, QUESTIONS, strict=False)]

    assert [sequence.answer.token_ids for sequence in running] == want
    assert again == want


def test_two_sequences_of_one_conversation_do_not_run_together(vlm):
    chat = vlm.chat()
    first, second = (chat.begin(text, max_new_tokens=4) for text in QUESTIONS[:2])

    with pytest.raises(ConfigError, match="two of the sequences are of one conversation"):
        scheduler.step(vlm, [first, second])
    with pytest.raises(ConfigError, match="lost its KV cache"):  # the second began on it
        scheduler.step(vlm, [first])
    alone = vlm.generate(QUESTIONS[1], max_new_tokens=4).token_ids
    assert [s.answer.token_ids for s, _ in [*scheduler.run(vlm, [second])][-1:]] in ([alone], [])
    assert second.answer.token_ids == alone


def test_a_sequence_whose_conversation_was_closed_does_not_go_on(vlm):
    chat = vlm.chat()
    running = chat.begin(QUESTIONS[0], max_new_tokens=4)
    scheduler.step(vlm, [running])
    chat.close()

    with pytest.raises(ConfigError, match="lost its KV cache"):
        scheduler.step(vlm, [running])


def test_one_whose_logits_are_no_numbers_leaves_and_the_others_go_on(vlm, monkeypatch):
    want = vlm.generate(QUESTIONS[1], max_new_tokens=6).token_ids
    bad, good = (vlm.chat().begin(text, max_new_tokens=6) for text in QUESTIONS[:2])
    monkeypatch.setattr(bad, "sampler", _fails)
    for _ in scheduler.run(vlm, [bad, good]):
        pass

    assert good.answer.token_ids == want
    assert bad.error is not None
    assert bad.answer.token_ids == []
    with pytest.raises(EngineError, match="no numbers"):
        scheduler.step(vlm, [bad])


def _fails(logits):
    raise EngineError("no numbers", fix="-")
