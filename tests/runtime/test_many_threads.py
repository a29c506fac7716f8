"""One thread runs a model while others wait: answers are the same as alone, and none is mixed with another."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_interruptions import FORMS, OF_EACH_FORM

import fico_export
from fico_export.errors import ConfigError

QUESTION, OTHER = "What is in the picture?", "And what is it made of?"


@pytest.fixture(scope="module", params=OF_EACH_FORM)
def vlm(request, tiny_checkpoint_v5, make_bundle):
    """One bundle for each form of the KV cache."""
    return fico_export.load(make_bundle(tiny_checkpoint_v5, 16, verify=False, **FORMS[request.param]))


@pytest.fixture(scope="module")
def plain(tiny_checkpoint_v5, make_bundle):
    return fico_export.load(make_bundle(tiny_checkpoint_v5, 16, verify=False))


def test_a_bundle_answers_alike_from_eight_threads(vlm, photographs):
    asked = [(f"{QUESTION} {i}", photographs[i % 5 : i % 5 + 1]) for i in range(8)]
    want = [vlm.generate(*question, max_new_tokens=8).token_ids for question in asked]

    def streamed(question):
        with vlm.stream(*question, max_new_tokens=8) as stream:
            for _ in stream:
                pass
        return stream.answer.token_ids

    with ThreadPoolExecutor(8) as pool:
        got = [*pool.map(streamed, asked)]
        at_once = [*pool.map(lambda question: vlm.generate(*question, max_new_tokens=8).token_ids, asked)]

    assert got == want
    assert at_once == want


def test_a_conversation_asked_from_several_threads_answers_one_after_another(plain):
    chat, questions = plain.chat(), [f"How many? {i}" for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = dict(
            zip(questions, pool.map(lambda q: chat.ask(q, max_new_tokens=4), questions), strict=True)
        )
    fresh, said = plain.chat(), chat.messages

    assert [m.role for m in said] == ["user", "assistant"] * 6
    for question, answer in zip(said[::2], said[1::2], strict=True):
        assert answers[question.text].text == answer.text
        assert fresh.ask(question.text, max_new_tokens=4).token_ids == answers[question.text].token_ids


def test_a_stream_is_read_by_one_thread_at_a_time(plain):
    stream = plain.stream(QUESTION, max_new_tokens=40)
    want = plain.generate(QUESTION, max_new_tokens=40).text
    pieces, refused = [], []

    def read():
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration:
                return
            except ConfigError as error:
                refused.append(error.what)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()

    assert all("two threads" in what for what in refused)
    assert sorted(pieces) == sorted(plain.stream(QUESTION, max_new_tokens=40))
    assert len("".join(pieces)) == len(want)


@pytest.mark.parametrize("form", ["portable", "in place"])
def test_low_memory_answers_alike_from_two_threads(form, tiny_checkpoint_v5, make_bundle, photographs):
    folder = make_bundle(tiny_checkpoint_v5, 16, verify=False, **FORMS[form])
    whole, short = fico_export.load(folder), fico_export.load(folder, low_memory=True)

    def turns(vlm, start, stream):
        chat, ids = vlm.chat(), []
        for i in range(3):
            with chat.stream(QUESTION, photographs[start + i : start + i + 1], max_new_tokens=4) as answer:
                for _ in answer if stream else ():
                    pass
            ids.append(
                answer.answer.token_ids
                if stream
                else chat.ask(OTHER, photographs[start : start + 1], max_new_tokens=4).token_ids
            )
        return ids

    jobs = [(start, stream) for start in (0, 2) for stream in (True, False)]
    want = [turns(whole, *job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        got = [*pool.map(lambda job: turns(short, *job), jobs)]

    assert got == want


def test_a_bundle_closed_while_another_thread_streams_ends_that_stream_clearly(
    tiny_checkpoint_v5, make_bundle
):
    vlm = fico_export.load(make_bundle(tiny_checkpoint_v5, 16, verify=False))
    stream = vlm.stream(QUESTION, max_new_tokens=1500)
    next(stream)
    closer = threading.Thread(target=vlm.close)
    closer.start()
    with pytest.raises(ConfigError, match="was closed"):
        for _ in stream:
            pass
    closer.join()
