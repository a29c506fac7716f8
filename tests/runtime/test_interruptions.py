"""What a person does to a conversation leaves it as if that turn had never been: left, interrupted, closed, used from threads."""

import gc
import threading

import numpy as np
import pytest
from exhaustive import exhaustive
from stepping import append

import fico_export
from fico_export.errors import ConfigError, EngineError
from fico_export.runtime.backends.ort.decoder import Decoder
from fico_export.runtime.sampling import Sampler

QUESTION, OTHER = "What is in the picture?", "And what is it made of?"
FORMS = {
    "portable": {},
    "in place": {"target": "ort"},
    "static, handing out rows": {"target": "trt-10.3", "max_context": 320},
    "static, in place": {"target": "rtx", "max_context": 320},
    "reducing in the decoder": {"method": "fastv", "settings": {"layer": 1}},
    "static and reducing": {"method": "fastv", "settings": {"layer": 1}, "target": "rtx", "max_context": 320},
}

# A cache that is static, and one that a decoder reduced, are each among the others.
BOTH = "static and reducing"
OF_EACH_FORM = [exhaustive(form) if form == BOTH else form for form in FORMS]


@pytest.fixture(scope="module", params=OF_EACH_FORM)
def vlm(request, tiny_checkpoint_v5, make_bundle):
    """One bundle for each form of the KV cache."""
    return fico_export.load(make_bundle(tiny_checkpoint_v5, 16, verify=False, **FORMS[request.param]))


@pytest.fixture(scope="module")
def plain(tiny_checkpoint_v5, make_bundle):
    return fico_export.load(make_bundle(tiny_checkpoint_v5, 16, verify=False))


class Interrupted:
    """Raises in place of, or after, the nth call of a method; at any other call, it does what it did."""

    def __init__(self, monkeypatch, owner, name, nth, error, *, after=False):
        self.calls, real = 0, getattr(owner, name)

        def interrupted(*given, **named):
            self.calls += 1
            if self.calls == nth and not after:
                raise error
            result = real(*given, **named)
            if self.calls == nth:
                raise error
            return result

        monkeypatch.setattr(owner, name, interrupted)


def spoil(chat, picture, how, monkeypatch):
    """A turn that goes wrong; the stream, so that the caller says how long it lives."""
    with monkeypatch.context() as patch:
        if how == "left":
            for _ in chat.stream(OTHER, max_new_tokens=9):
                break
        elif how == "left before the first token":
            chat.stream(OTHER, max_new_tokens=9)
        elif how == "closed":
            stream = chat.stream(OTHER, max_new_tokens=9)
            next(stream)
            stream.close()
        elif how == "failed reader":
            with pytest.raises(KeyError):
                fail_while_reading(chat)
        else:
            owner, name, nth, error, after = INTERRUPTIONS[how]
            Interrupted(patch, owner, name, nth, error, after=after)
            with pytest.raises(type(error)):
                chat.ask(OTHER, max_new_tokens=9)


def fail_while_reading(chat):
    with chat.stream(OTHER, max_new_tokens=9) as stream:
        for piece in stream:
            raise KeyError(piece)


# What stops a turn in the middle: whose method, at which call, by what, and whether the call has done its work by then.
INTERRUPTIONS = {
    "Ctrl-C before prefill": (Decoder, "step", 1, KeyboardInterrupt(), False),
    "Ctrl-C after prefill": (Decoder, "step", 1, KeyboardInterrupt(), True),
    "failure in decode": (Decoder, "step", 3, EngineError("no memory", fix="free some"), False),
    "Ctrl-C after a step": (Decoder, "step", 3, KeyboardInterrupt(), True),
    "Ctrl-C amid a step": (Decoder, "_step", 3, KeyboardInterrupt(), True),
    "Ctrl-C between steps": (Sampler, "__call__", 3, KeyboardInterrupt(), True),
}
WAYS = ["left", "left before the first token", "closed", "failed reader", *INTERRUPTIONS]


@pytest.mark.parametrize("how", WAYS)
def test_after_a_turn_that_was_not_whole_the_next_answers_as_in_a_fresh_conversation(
    vlm, photographs, how, monkeypatch
):
    chat, fresh = vlm.chat(), vlm.chat()
    for each in (chat, fresh):
        each.ask(QUESTION, photographs[:1], max_new_tokens=5)
    before = chat.messages
    spoil(chat, photographs[0], how, monkeypatch)
    assert chat.messages == before
    answers = [chat.ask(OTHER, max_new_tokens=9) for chat in (chat, fresh)]
    again = [chat.ask("Why?", max_new_tokens=9) for chat in (chat, fresh)]

    assert answers[0].token_ids == answers[1].token_ids
    assert again[0].token_ids == again[1].token_ids
    assert chat.messages == fresh.messages
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 3
    assert chat.cache_lengths == fresh.cache_lengths


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineError("no memory", fix="free some")])
def test_a_first_turn_that_fails_in_prefill_leaves_an_empty_conversation(
    vlm, photographs, error, monkeypatch
):
    chat = vlm.chat()
    with monkeypatch.context() as patch:
        for name in ("step", "prefill"):
            Interrupted(patch, Decoder, name, 1, error, after=True)
        with pytest.raises(type(error)):
            chat.ask(OTHER, photographs[1:2], max_new_tokens=4)
    assert chat.messages == ()
    assert chat.images == ()
    answer = chat.ask(QUESTION, photographs[:1], max_new_tokens=9)

    assert answer.token_ids == vlm.generate(QUESTION, photographs[:1], max_new_tokens=9).token_ids
    assert answer.cached_tokens == 0


def test_an_interruption_while_the_picture_is_encoded_changes_nothing(plain, photographs, monkeypatch):
    chat = plain.chat()
    with monkeypatch.context() as patch:
        Interrupted(patch, type(plain), "encode_pixels", 1, KeyboardInterrupt(), after=True)
        with pytest.raises(KeyboardInterrupt):
            chat.ask(QUESTION, photographs[:1])
    answer = chat.ask(OTHER, photographs[1:2], max_new_tokens=6)

    assert answer.token_ids == plain.generate(OTHER, photographs[1:2], max_new_tokens=6).token_ids
    assert len(chat.images) == 1


def test_two_streams_of_one_conversation_at_once_are_refused(plain):
    chat = plain.chat()
    first = chat.stream(QUESTION, max_new_tokens=6)
    pieces = [next(first)]
    for attempt in (lambda: chat.stream(OTHER), lambda: chat.ask(OTHER), chat.restart):
        with pytest.raises(ConfigError, match="still under way") as refused:
            attempt()
        assert ".close()" in refused.value.fix
    pieces += first

    assert "".join(pieces) == plain.generate(QUESTION, max_new_tokens=6).text
    assert [m.role for m in chat.messages] == ["user", "assistant"]
    assert chat.ask(OTHER, max_new_tokens=3).token_ids


def test_a_stream_that_was_not_begun_is_under_way_until_it_is_closed_or_dropped(plain):
    chat = plain.chat()
    stream = chat.stream(QUESTION, max_new_tokens=3)
    with pytest.raises(ConfigError, match="still under way"):
        chat.ask(OTHER)
    stream.close()
    stream = chat.stream(QUESTION, max_new_tokens=3)
    del stream

    assert chat.ask(OTHER, max_new_tokens=3).cached_tokens == 0


def test_an_answer_is_whole_with_its_last_piece(plain):
    """Whoever leaves after the last piece has had the whole answer, and the conversation has the turn."""
    chat, whole = plain.chat(), plain.generate(QUESTION, max_new_tokens=6)
    stream, text = chat.stream(QUESTION, max_new_tokens=6), ""
    assert stream.answer.finish_reason == ""
    for piece in stream:
        text += piece
        if stream.answer.finish_reason:
            break

    assert text == stream.answer.text == whole.text
    assert stream.answer.finish_reason == "length"
    assert chat.messages[-1].text == whole.text


def test_a_stopped_answer_is_the_turn_as_far_as_it_was_shown(plain):
    chat = plain.chat()
    with chat.stream(QUESTION, max_new_tokens=50) as stream:
        shown = next(stream) + next(stream)
        answer = stream.stop()
        assert list(stream) == []

    assert answer.finish_reason == "stopped"
    assert answer.text == shown
    assert [m.text for m in chat.messages] == [QUESTION, shown]
    second = chat.ask(OTHER, max_new_tokens=6)
    assert second.cached_tokens > 0
    assert second.token_ids == continued(plain, [QUESTION, shown, OTHER], 6)


def continued(vlm, texts, count):
    """Token ids of the answer to the last of some texts, from the decoder alone, without conversation or cache reuse."""
    from fico_export.runtime.inputs.prompt import Message

    roles = [("user", "assistant")[i % 2] for i in range(len(texts))]
    ids = vlm.formatter.encode([Message(*pair) for pair in zip(roles, texts, strict=True)], 16)
    found = []
    for _ in range(count):
        logits = append(vlm.decoder, vlm.decoder.new_cache(), vlm.embed(ids), range(len(ids)))
        found.append(int(np.argmax(logits)))
        ids = [*ids, found[-1]]
    return found


def test_an_answer_stopped_before_a_word_was_said_is_no_turn(plain):
    chat = plain.chat()
    stream = chat.stream(QUESTION, max_new_tokens=50)
    answer = stream.stop()

    assert (answer.text, answer.finish_reason, chat.messages) == ("", "stopped", ())
    assert list(stream) == []
    assert chat.ask(OTHER, max_new_tokens=3).token_ids


def test_another_thread_stops_an_answer(plain):
    chat = plain.chat()
    stream = chat.stream(QUESTION, max_new_tokens=1500)
    first = next(stream)
    stopper = threading.Thread(target=stream.stop)
    text = first
    stopper.start()
    for piece in stream:
        text += piece
    stopper.join()

    assert stream.answer.finish_reason == "stopped"
    assert chat.messages[-1].text == text


def test_a_stream_is_read_once(plain):
    chat = plain.chat()
    stream = chat.stream(QUESTION, max_new_tokens=4)
    assert iter(stream) is stream
    text = "".join(stream)

    assert list(stream) == []
    assert stream.answer.text == text
    stream.close()
    assert stream.stop().finish_reason == "length"
    assert len(chat.messages) == 2


@pytest.mark.parametrize("how", ["closed", "failed"])
def test_a_stream_that_was_left_is_not_read_as_if_it_had_ended(plain, how, monkeypatch):
    stream = plain.stream(QUESTION, max_new_tokens=9)
    next(stream)
    if how == "closed":
        stream.close()
        stream.close()
    else:
        with monkeypatch.context() as patch:
            Interrupted(patch, Decoder, "step", 1, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                next(stream)

    with pytest.raises(ConfigError, match="left before its answer was whole"):
        next(stream)
    assert stream.answer.finish_reason == ""


def test_a_stream_closed_by_another_thread_tells_its_reader(plain):
    stream = plain.stream(QUESTION, max_new_tokens=1500)
    next(stream)
    closer = threading.Thread(target=stream.close)
    closer.start()
    with pytest.raises(ConfigError, match="left before its answer was whole"):
        for _ in stream:
            pass
    closer.join()


def test_a_stream_dropped_in_a_cycle_by_another_thread_leaves_its_conversation_free(plain):
    chat = plain.chat()
    cycle = [chat.stream(QUESTION, max_new_tokens=9)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()

    assert chat.ask(OTHER, max_new_tokens=4).token_ids == plain.generate(OTHER, max_new_tokens=4).token_ids


def test_a_closed_conversation_gives_its_cache_back_and_says_that_it_is_closed(plain):
    with plain.chat() as chat:
        stream = chat.stream(QUESTION, max_new_tokens=9)
        next(stream)
    chat.close()

    assert stream.closed
    assert chat.cache_lengths == []
    for attempt in (lambda: chat.ask(OTHER), chat.restart, lambda: chat.stream(OTHER)):
        with pytest.raises(ConfigError, match="conversation was closed") as refused:
            attempt()
        assert "vlm.chat()" in refused.value.fix
    assert plain.generate(OTHER, max_new_tokens=2).token_ids


@pytest.mark.parametrize("form", ["portable", "in place"])
def test_a_closed_bundle_gives_its_graphs_back_and_says_that_it_is_closed(
    form, tiny_checkpoint_v5, make_bundle, photographs, sessions
):
    folder = make_bundle(tiny_checkpoint_v5, 16, verify=False, **FORMS[form])
    with fico_export.load(folder) as vlm:
        chat = vlm.chat()
        stream = chat.stream(QUESTION, photographs[:1], max_new_tokens=9)
        next(stream)
        assert len(sessions) == 2
    vlm.close()
    gc.collect()

    assert len(sessions) == 0  # though the conversation and its stream are there
    attempts = (
        lambda: next(stream),
        lambda: chat.ask(OTHER),
        lambda: vlm.generate(OTHER),
        lambda: vlm.encode_image(photographs[0]),
        lambda: vlm.embed([3]),
        lambda: vlm.embed_by_graph([3]),
        lambda: vlm.decoder,
    )
    for attempt in attempts:
        with pytest.raises(ConfigError, match="was closed") as refused:
            attempt()
        assert "fico_export.load" in refused.value.fix
    chat.close()


@pytest.fixture
def sessions(monkeypatch):
    """The sessions that are in memory, of those opened from now on."""
    import weakref

    from fico_export.runtime.backends.ort import decoder, graphs, sessions

    live, open_session = weakref.WeakSet(), sessions.open_session

    def spied(*given):
        session = open_session(*given)
        live.add(session._sess)
        return session

    monkeypatch.setattr(graphs, "open_session", spied)
    monkeypatch.setattr(decoder, "open_session", spied)
    return live


def test_a_conversation_in_place_keeps_no_graph_that_low_memory_has_closed(
    tiny_checkpoint_v5, make_bundle, photographs, sessions
):
    folder = make_bundle(tiny_checkpoint_v5, 16, verify=False, target="ort")
    vlm, whole = fico_export.load(folder, low_memory=True), fico_export.load(folder)
    sessions.clear()
    chats = vlm.chat(), whole.chat()
    found = []
    for question, picture in ((QUESTION, photographs[:1]), (OTHER, photographs[1:2])):
        found.append([chat.ask(question, picture, max_new_tokens=6).token_ids for chat in chats])
        gc.collect()
        assert len(sessions) == 1

    assert all(short == long for short, long in found)


def test_a_system_message_comes_before_all_turns_and_stays_when_they_are_forgotten(plain):
    chat = plain.chat(system="You answer in one word.")
    first = chat.ask(QUESTION, max_new_tokens=4)
    chat.restart()
    again = chat.ask(QUESTION, max_new_tokens=4)

    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    assert again.token_ids == first.token_ids
    assert first.prompt_tokens > plain.generate(QUESTION, max_new_tokens=4).prompt_tokens


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("", "leaves a system message out"),
    ],
)
def test_a_system_message_that_the_template_does_not_take_is_refused(plain, template, what):
    from fico_export.runtime.inputs.prompt import PromptFormatter

    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        + template
        + (
            "{% else %}{{ m.role }}: {% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}"
            "{% endif %}{% endfor %}"
        )
    )
    vlm = fico_export.load(plain.folder)
    vlm.formatter = PromptFormatter(
        (plain.folder / "tokenizer.json").read_text(), refusing, plain.manifest.tokens
    )
    with pytest.raises(ConfigError, match=what) as refused:
        vlm.chat(system="Be short.")

    assert "first question" in refused.value.fix
    assert vlm.chat().ask(QUESTION, max_new_tokens=2).token_ids
