"""One reader of JSON: what a stranger's file may hold, and what it may not."""

import json

import pytest

from fico_export import documents
from fico_export.errors import BundleError, ConfigError

FIX = "give another file"


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        "ü",
        1,
        -(2**63),
        1000000000000000019884624838656,
        1.5,
        None,
        True,
        {"a": [{"b": "\U0001f600"}]},
    ],
)
def test_json_is_read_as_it_was_written(content, tmp_path):
    path = tmp_path / "a.json"
    for ascii_only in (True, False):
        path.write_text(json.dumps(content, ensure_ascii=ascii_only), encoding="utf-8")
        assert documents.read(path, fix=FIX) == content


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[1", "damaged"),
        ("9" * 5000, "40 digits"),
        ("-" + "9" * 41, "40 digits"),
        ("[" * 65 + "]" * 65, "nested deeper"),
        ("[" * 500_000, "nested deeper"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested deeper"),
        (r'"\ud800"', "surrogate"),
        (r'{"\udfff": 1}', "surrogate"),
        ("NaN", "NaN"),
        ("[-Infinity]", "Infinity"),
        ("1e999", "finite"),
    ],
    ids=range(13),
)
def test_what_no_program_writes_is_refused(text, words, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(BundleError) as caught:
        documents.read(path, error=BundleError, fix=FIX)
    assert words in caught.value.what
    assert str(path) in caught.value.what
    assert len(caught.value.what) < 300 + len(str(path))
    assert caught.value.fix == FIX


def test_a_whole_surrogate_pair_is_a_character():
    assert documents.parse(r'"\ud83d\ude00"', "text", fix=FIX) == "\U0001f600"


@pytest.mark.parametrize("text", ["[]", '"a"', "1", "null", "true"])
def test_an_object_is_asked_for_and_something_else_is_named(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="not an object"):
        documents.read_object(path, fix=FIX)


def test_what_is_no_text_is_refused(tmp_path):
    binary = tmp_path / "b.json"
    binary.write_bytes(b"\xff\xfe{}")
    for path in (binary, tmp_path, tmp_path / "none.json", tmp_path / "n\0ul"):
        with pytest.raises(ConfigError, match="cannot read"):
            documents.read(path, fix=FIX)


def test_a_huge_file_is_not_loaded(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(documents.MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than 64 MiB"):
        documents.read(path, fix=FIX)
