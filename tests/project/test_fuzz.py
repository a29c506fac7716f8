"""A small campaign of scripts/fuzz.py, of one seed: files of every kind, damaged, are read or refused."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import fuzz
import fuzz_mutators
import fuzz_subjects

SEED = 14
PER_KIND = 9


@pytest.fixture(scope="module")
def subjects(tmp_path_factory, make_bundle, tiny_checkpoint):
    bundle = make_bundle(tiny_checkpoint, 16)
    return lambda *names: fuzz_subjects.Subjects(tmp_path_factory.mktemp("originals"), names, bundle)


@pytest.mark.parametrize("name", fuzz_subjects.NAMES)
def test_what_is_damaged_is_read_or_refused(subjects, name):
    found = fuzz.campaign(SEED, range(PER_KIND), subjects(name))
    assert not found.wrong, found.wrong
    assert sum(found.ends.values()) == PER_KIND


@pytest.mark.parametrize("name", fuzz_subjects.NAMES)
def test_what_is_not_damaged_is_read(subjects, name, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_mutators, "mutate", lambda path, chance: "nothing")
    monkeypatch.setattr(fuzz_subjects, "program", lambda chance, depth: "")
    assert fuzz.case(SEED, 0, subjects(name), tmp_path)[1] == "read"


def test_a_case_follows_from_its_seed_and_number(subjects, tmp_path):
    kinds = subjects("recipe", "processor")
    places = [tmp_path / name for name in ("a", "b", "c")]
    for place in places:
        place.mkdir()
    ends = [fuzz.case(SEED, number, kinds, place) for number, place in zip((5, 5, 7), places, strict=True)]
    assert ends[0][1:] == tuple(said.replace(str(places[1]), str(places[0])) for said in ends[1][1:])
    assert ends[0] != ends[2]
    assert len({(place / "preprocessor_config.json").read_bytes() for place in places}) == 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (KeyError("a key"), "KeyError"),
        (MemoryError(), "MemoryError"),
        (fuzz.FicoError("what", fix=""), "without a fix"),
        (fuzz.TooSlow(), "took over"),
    ],
)
def test_what_is_neither_read_nor_refused_is_told(subjects, monkeypatch, wrong, words):
    kinds = subjects("recipe")

    def fail(folder, chance):
        raise wrong

    monkeypatch.setattr(
        kinds, "pick", lambda number: fuzz_subjects.Subject("recipe", kinds._write_recipe, fail)
    )
    found = fuzz.campaign(SEED, range(3, 4), kinds)
    assert [(number, name) for number, name, _, _ in found.wrong] == [(3, "recipe")]
    assert words in found.wrong[0][3]
    assert "1 wrong" in fuzz.summary(found)[-1]
