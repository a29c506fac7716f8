"""How an answer ends, streams, samples, and what a conversation keeps."""

import dataclasses

import numpy as np
import pytest
from checkpoints import write_tiny

import fico_export
from fico_export.errors import ConfigError, InputError
from fico_export.runtime.inputs.prompt import Message
from fico_export.runtime.sampling import Sampling

QUESTION = "What is in the picture?"


@pytest.fixture(scope="module")
def vlm(tiny_checkpoint, make_bundle):
    return fico_export.load(make_bundle(tiny_checkpoint, 16))


def with_eos(vlm, token):
    """The same bundle, for which another token ends an answer."""
    loaded = fico_export.load(vlm.folder)
    tokens = loaded.manifest.tokens.model_copy(update={"eos_ids": [token]})
    loaded.manifest = loaded.manifest.model_copy(update={"tokens": tokens})
    return loaded


def test_an_answer_ends_at_the_end_of_sequence_token(vlm, photographs):
    whole = vlm.generate(QUESTION, photographs[:1], max_new_tokens=12)
    token = whole.token_ids[5]
    answer = with_eos(vlm, token).generate(QUESTION, photographs[:1], max_new_tokens=12)

    assert answer.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
    assert answer.finish_reason == "eos"


def test_an_answer_may_go_on_after_the_end_of_sequence_token(vlm, photographs):
    whole = vlm.generate(QUESTION, photographs[:1], max_new_tokens=12)
    answer = with_eos(vlm, whole.token_ids[5]).generate(
        QUESTION, photographs[:1], max_new_tokens=12, sampling=Sampling(ignore_eos=True)
    )

    assert answer.token_ids == whole.token_ids
    assert answer.finish_reason == "length"


def test_an_answer_ends_at_max_new_tokens(vlm):
    answer = vlm.generate("x", max_new_tokens=3)

    assert len(answer.token_ids) == 3
    assert answer.finish_reason == "length"


def test_an_answer_ends_before_a_stop_string(vlm, photographs):
    whole = vlm.generate(QUESTION, photographs[:1], max_new_tokens=24)
    stop = whole.text[8:10]
    answer = vlm.generate(QUESTION, photographs[:1], max_new_tokens=24, stop=[stop])

    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish_reason == "stop"


def test_streamed_pieces_are_the_answer(vlm, photographs):
    stream = vlm.stream(QUESTION, photographs[:1], max_new_tokens=24)
    pieces = list(stream)

    assert "".join(pieces) == stream.answer.text
    assert len(pieces) > 1
    assert stream.answer.token_ids == vlm.generate(QUESTION, photographs[:1], max_new_tokens=24).token_ids
    assert stream.answer.text == vlm.formatter.tokenizer.decode(stream.answer.token_ids)


def test_a_seed_repeats_a_sampled_answer(vlm):
    def answer(seed):
        return vlm.generate("x", max_new_tokens=12, sampling=Sampling(1.0, 0.95, 50, seed)).token_ids

    assert answer(1) == answer(1)
    assert len({tuple(answer(seed)) for seed in range(4)}) > 1
    assert vlm.generate("x", max_new_tokens=12, sampling=Sampling(1.0, top_k=1)).token_ids == (
        vlm.generate("x", max_new_tokens=12).token_ids
    )


def test_a_refused_turn_leaves_the_conversation_as_it_was(vlm, photographs):
    chat = vlm.chat()
    first = chat.ask(QUESTION, photographs[:1], max_new_tokens=4)
    with pytest.raises(InputError):
        chat.ask("Is this <image> one?")
    with pytest.raises(InputError):
        chat.ask("And this?", [b"no picture"])
    after = chat.ask("And?", max_new_tokens=4)
    fresh = vlm.chat()
    fresh.ask(QUESTION, photographs[:1], max_new_tokens=4)

    assert after.token_ids == fresh.ask("And?", max_new_tokens=4).token_ids
    assert after.cached_tokens >= first.prompt_tokens


@pytest.mark.slow
def test_the_context_is_filled_to_its_last_position_and_not_beyond(tmp_path):
    text = {"max_position_embeddings": 40}
    bundle = fico_export.export(
        write_tiny(tmp_path / "checkpoint", text=text), 8, out=tmp_path / "bundle", verify=False
    )
    short = fico_export.load(bundle)
    answer = short.generate("What?", max_new_tokens=100)
    long_text = "what is in this picture " * 10

    assert answer.finish_reason == "context"
    assert answer.prompt_tokens + len(answer.token_ids) == 41  # the last token is predicted, and not run
    with pytest.raises(InputError, match=r"takes \d+ positions.*the model has 40"):
        short.generate(long_text)


def test_original_positions_count_the_tokens_that_were_dropped(tiny_checkpoint, make_bundle, photographs):
    compact = fico_export.load(make_bundle(tiny_checkpoint, 16, positions="compact"))
    original = fico_export.load(make_bundle(tiny_checkpoint, 16, positions="original"))
    encoded = original.encode_image(photographs[0])
    prompts = {}
    for vlm in (compact, original):
        placed = vlm.layout.place(encoded.size, encoded.keep_index)
        ids = vlm.formatter.encode([Message("user", QUESTION, 1)])
        prompts[vlm] = vlm.layout.lay_out(ids, [dataclasses.replace(encoded, block=placed)])
    start = prompts[compact].visual.tolist().index(0)
    (counted,), (gapped,) = (prompts[vlm].positions.tolist() for vlm in (compact, original))

    assert counted == list(range(len(prompts[compact].ids)))
    assert gapped[start : start + 16] == (start + encoded.keep_index).tolist()
    assert gapped[start + 16] == start + 64
    assert prompts[original].next_position == prompts[compact].next_position + 48


def test_encoded_pictures_are_ready_for_another_decoder(vlm, photographs):
    encoded = vlm.encode_image(photographs[0])

    assert encoded.features.shape == (16, 64)
    assert encoded.keep_index.shape == (16,)
    assert (np.diff(encoded.keep_index) > 0).all()
    assert encoded.digest != vlm.encode_image(photographs[1]).digest


def test_a_picture_encoded_once_answers_as_the_picture_does(vlm, photographs):
    expected = [vlm.generate(q, photographs[:1], max_new_tokens=6).token_ids for q in (QUESTION, "Where?")]
    encoded, chat = vlm.encode_image(photographs[0]), vlm.chat()
    first = chat.ask(QUESTION, [encoded], max_new_tokens=6)
    chat.restart()
    second = chat.ask("Where?", [encoded], max_new_tokens=6)

    assert [first.token_ids, second.token_ids] == expected
    assert first.cached_tokens == 0
    assert second.cached_tokens >= 16  # the image was not run again
    assert second.prompt_tokens < first.prompt_tokens + 16  # and no turn came before


def test_features_of_another_bundle_are_refused(vlm, tiny_checkpoint, make_bundle, photographs):
    other = fico_export.load(make_bundle(tiny_checkpoint))

    with pytest.raises(InputError, match=r"\(64, 64\).*\(16, 64\)"):
        vlm.generate(QUESTION, [other.encode_image(photographs[0])])


def test_times_add_up(vlm, photographs):
    answer = vlm.generate(QUESTION, photographs[:1], max_new_tokens=8)
    stages = answer.stages_ms

    assert list(stages) == ["preprocess", "vision", "embed", "prefill", "decode"]
    assert answer.ttft_ms == pytest.approx(sum(stages.values()) - stages["decode"])
    assert answer.tpot_ms == pytest.approx(stages["decode"] / 7)


@pytest.mark.parametrize("count", [0, -1])
def test_an_answer_of_no_tokens_is_refused(vlm, count):
    with pytest.raises(ConfigError):
        vlm.generate("x", max_new_tokens=count)
