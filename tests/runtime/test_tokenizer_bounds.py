"""A tokenizer.json that came with a download is read and used within bounds."""

import base64
import json
import time

import pytest
from tokenizers import Tokenizer

from fico_export import tokenizer
from fico_export.errors import CheckpointError, InputError

FIX = "use another"


@pytest.fixture(scope="module")
def spec(tiny_checkpoint):
    return json.loads((tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))


def read(spec, **changes):
    return tokenizer.read(json.dumps({**spec, **changes}), "tokenizer.json", error=CheckpointError, fix=FIX)


def replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps, name="normalizers"):
    return {"type": "Sequence", name: list(steps)}


def table(longest):
    """SentencePiece's table of nothing but a text."""
    return base64.b64encode((4).to_bytes(4, "little") + bytes(4) + longest.encode() + b"\0").decode()


HOSTILE = {
    "doubling": {"normalizer": sequence(*[replace("a", "aa")] * 40)},
    "doubling in sequences": {
        "normalizer": sequence(sequence(*[replace("a", "aa")] * 5), sequence(*[replace("a", "aa")] * 5))
    },
    "one long text": {"normalizer": replace("a", "a" * 10**6)},
    "between all characters": {"normalizer": replace("", "a" * 10**6, "Regex")},
    "many bytes": {"pre_tokenizer": sequence(*[{"type": "ByteLevel"}] * 9, name="pretokenizers")},
    "in front": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
    "a table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table("a" * 10**6)}},
    "a broken table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a decoder": {"decoder": sequence(*[replace("a", "aa")] * 40, name="decoders")},
    "a decoder that searches": {"decoder": replace("(a|aa)+b", "c", "Regex")},
    "a text around words": {
        "model": {"type": "BPE", "end_of_word_suffix": "a" * 10**6, "vocab": {}, "merges": []}
    },
    "a text for what is unknown": {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["u" * 10**6, 0.0], ["a", 1.0]]}
    },
    "an endless token": {"added_tokens": [{"id": 0, "content": "a" * 10**6, "special": True}]},
    "ids around a text": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 1000,
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1] * 1000, "tokens": ["<s>"] * 1000}},
        }
    },
    "tokens that are not there": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "nobody", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
    "a list": {"normalizer": [1, 2]},
    "no model": {"model": None},
    "no words": {"model": {"type": "BPE", "vocab": 7, "merges": "x"}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_that_grows_without_bounds_is_refused(spec, name):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        read(spec, **HOSTILE[name])
    assert caught.value.fix == FIX
    assert len(caught.value.what) < 400


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {}}', "[" * 10000, '{"model": ' + "9" * 5000 + "}"])
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        tokenizer.read(text, "tokenizer.json", error=CheckpointError, fix=FIX)


@pytest.mark.parametrize("pattern", ["(?:a|aa|a)+[^a]", "a*a*a*a*a*[^a]"])
def test_a_pattern_that_searches_for_ever_is_given_up_on(spec, pattern, monkeypatch):
    monkeypatch.setattr(tokenizer, "MAX_SECONDS", 1.0)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    slow = read(spec, pre_tokenizer=split)
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        slow.encode("a" * 700, add_special_tokens=True)
    assert time.perf_counter() - began < 60


def test_a_text_without_end_is_refused(spec):
    with pytest.raises(InputError, match="characters"):
        read(spec).encode("a" * (tokenizer.MAX_TEXT + 1), add_special_tokens=True)
    growing = read(spec, normalizer=replace("a", "a" * 200))
    with pytest.raises(InputError, match="characters"):
        growing.encode("a" * (tokenizer.MAX_TEXT // 4), add_special_tokens=True)


@pytest.mark.parametrize("text", ["What is it?", "  é 🐈 这\n\n", "", "word " * 500])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": r"\s+|\w+"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        {"normalizer": sequence({"type": "NFKC"}, {"type": "Lowercase"}, replace(" {2,}", " ", "Regex"))},
    ],
    ids=["as it is", "with a pattern", "with steps"],
)
def test_the_ids_are_those_of_the_library(spec, text, changes):
    theirs = Tokenizer.from_str(json.dumps({**spec, **changes}))
    for special in (True, False):
        expected = theirs.encode(text, add_special_tokens=special).ids
        assert read(spec, **changes).encode(text, add_special_tokens=special) == expected
