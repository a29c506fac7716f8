"""Odd values in the tokenizer's and the generation's files: an error names the key and the file that is right."""

import json

import pytest
from checkpoints import write_tiny
from cli_tools import copied, edit_json

from fico_export import models
from fico_export.errors import CheckpointError

HUGE = "x" * 100_000
NO_TEXTS = [3, 2.5, [], ["</s>"], {}, {"id": 2}, {"content": 2}, {"content": None}, HUGE, {"content": HUGE}]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def folder(written, tmp_path):
    return copied(written, tmp_path / "model")


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        models.load(folder).files()
    assert "of this checkpoint" in caught.value.fix or "published with" in caught.value.fix
    assert len(caught.value.what) < 500
    return caught.value.what


def setting(folder, name, **changes):
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def short(value):
    return str(value)[:30]


@pytest.mark.parametrize("key", ["bos_token", "eos_token", "pad_token", "image_token"])
@pytest.mark.parametrize("value", NO_TEXTS, ids=short)
def test_a_special_token_that_is_no_text_is_named(folder, key, value):
    setting(folder, "tokenizer_config.json", **{key: value})

    assert f"{key} of tokenizer_config.json" in refusal(folder)


@pytest.mark.parametrize("key", ["bos_token", "eos_token"])
def test_a_switch_is_no_special_token(folder, key):
    setting(folder, "tokenizer_config.json", **{key: True, "add_bos_token": True})

    assert f"{key} of tokenizer_config.json is True, not a text" in refusal(folder)


@pytest.mark.parametrize("value", NO_TEXTS, ids=short)
def test_an_additional_token_that_is_no_text_is_named(folder, value):
    setting(folder, "tokenizer_config.json", extra_special_tokens={"video_token": value})

    assert "video_token of tokenizer_config.json" in refusal(folder)


@pytest.mark.parametrize("value", [3, [3], [[]], [{}], [None], "</s>", [HUGE], [{"content": 3}]], ids=short)
def test_additional_tokens_are_a_list_of_texts(folder, value):
    setting(folder, "tokenizer_config.json", extra_special_tokens=None, additional_special_tokens=value)

    assert "additional special token" in refusal(folder)


def test_more_additional_tokens_than_a_manifest_holds_are_refused(folder):
    setting(folder, "tokenizer_config.json", extra_special_tokens=[f"<{i}>" for i in range(5000)])

    assert "special tokens.additional" in refusal(folder)


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"id": -1, "content": "<image>"}, "id"),
        ({"id": 2**32, "content": "<image>"}, "id"),
        ({"id": 2**63 - 1, "content": "<image>"}, "id"),
        ({"id": "3", "content": "<image>"}, "id"),
        ({"id": 3.0, "content": "<image>"}, "id"),
        ({"id": True, "content": "<image>"}, "id"),
        ({"id": [3], "content": "<image>"}, "id"),
        ({"id": {}, "content": "<image>"}, "id"),
        ({"content": "<image>"}, "id"),
        ({"id": 3}, "content"),
        ({"id": 3, "content": 3}, "content"),
        ({"id": 3, "content": ["<image>"]}, "content"),
        ({"id": 3, "content": HUGE}, "content"),
    ],
    ids=short,
)
def test_an_odd_added_token_is_named_with_its_place(folder, entry, key):
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    edit_json(folder / "tokenizer.json", added_tokens=[*added, entry])

    assert f"added_tokens.{len(added)}.{key} of tokenizer.json" in refusal(folder)


@pytest.mark.parametrize("value", [None, 3, "x", {}, [3], ["<image>"], [None], [[]]], ids=short)
def test_added_tokens_are_a_list_of_objects(folder, value):
    edit_json(folder / "tokenizer.json", added_tokens=value)

    assert "added_tokens" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", "2"), ("eos_token_id", [2.0]), ("eos_token_id", [[2]]), ("eos_token_id", -1), ("eos_token_id", True),
        ("eos_token_id", 2**63 - 1), ("eos_token_id", {}), ("eos_token_id", [2] * 5000),
        ("repetition_penalty", "1.3"), ("repetition_penalty", 0), ("repetition_penalty", [1.3]), ("repetition_penalty", True),
        ("no_repeat_ngram_size", 2.5), ("no_repeat_ngram_size", -1), ("suppress_tokens", 3), ("suppress_tokens", ["3"]),
        ("suppress_tokens", [2**62]), ("bad_words_ids", [3]), ("bad_words_ids", [[]]), ("bad_words_ids", [[2**40]]),
        ("bad_words_ids", {"a": 1}), ("sequence_bias", [[[2**40], 1.0]]), ("sequence_bias", [3]), ("temperature", "hot"),
        ("temperature", -1.0), ("top_p", 2.0), ("top_p", "x"), ("top_k", -1), ("top_k", 2.5), ("do_sample", "yes"),
        ("do_sample", 1), ("max_new_tokens", 0), ("max_new_tokens", "x"), ("max_length", []), ("min_new_tokens", -1),
        ("stop_strings", 3), ("stop_strings", [3]), ("exponential_decay_length_penalty", [1]),
        ("exponential_decay_length_penalty", "x"),
    ],
    ids=short,
)  # fmt: skip
def test_an_odd_value_of_the_generation_config_names_its_key(folder, key, value):
    setting(folder, "generation_config.json", **{key: value})

    with pytest.raises(CheckpointError) as caught:
        models.load(folder).files()
    assert key in caught.value.what
    assert "generation_config.json" in caught.value.what
    assert "generation_config.json" in caught.value.fix


@pytest.mark.parametrize("value", [3, "x", ["x"], True], ids=short)
def test_an_image_processor_that_is_no_object_is_refused(folder, value):
    setting(folder, "processor_config.json", image_processor=value)

    assert "image_processor of processor_config.json" in refusal(folder)


def test_a_tokenizer_that_brings_its_library_down_is_refused_before_transformers_opens_it(folder):
    """The library of tokenizers panics over a broken table, which is no Exception."""
    setting(folder, "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("unk_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))

    assert "tokenizer.json" in refusal(folder)
