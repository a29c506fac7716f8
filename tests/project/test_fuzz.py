"""Spoilt files are read or refused: a small fixed part of what `scripts/fuzz.py` runs, and that it would find a fault."""

import shutil
import time

import fuzz
import pytest
from fuzz_subjects import SUBJECTS, Subject

from fico_export.errors import ConfigError

SEED, CASES = 20261128, 110


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wholes")
    fuzz.write_wholes(folder, set(SUBJECTS))
    return folder


@pytest.mark.parametrize("name", SUBJECTS)
def test_files_that_are_whole_are_read(name, wholes, tmp_path):
    SUBJECTS[name].read(shutil.copytree(wholes / name, tmp_path / "files"))


def test_spoilt_files_are_read_or_refused(wholes):
    outcomes = [*fuzz.outcomes(SEED, fuzz.cases(SEED, CASES), wholes)]

    assert [outcome for outcome in outcomes if outcome.found] == []
    assert {outcome.subject for outcome in outcomes} == {*SUBJECTS}
    assert {outcome.result for outcome in outcomes} == {"read", "refused"}


def _refuses(folder):
    raise ConfigError("no", fix="give another")


def _says_nothing(folder):
    raise ConfigError("", fix="")


@pytest.mark.parametrize(
    ("read", "result"),
    [
        (lambda folder: None, "read"),
        (_refuses, "refused"),
        (lambda folder: int("x"), "ValueError"),
        (lambda folder: [][1], "IndexError"),
        (lambda folder: time.sleep(30), "time"),
        (_says_nothing, "without words"),
    ],
    ids=["read", "refused", "value", "index", "time", "words"],
)
def test_a_fault_is_found(read, result, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    subject = Subject("planted", lambda folder: None, {"a.json": lambda rng, content: b"[]"}, read)
    outcome = fuzz.run_case(subject, tmp_path, 0, 0, seconds=1.0)

    assert result in outcome.result
    assert outcome.found == (result not in ("read", "refused"))


def test_a_case_is_the_same_again(wholes, tmp_path):
    spoilt = []
    for i in range(2):
        folder = shutil.copytree(wholes / "config", tmp_path / str(i))
        SUBJECTS["config"].spoil(fuzz.random.Random("1:config:7"), folder)
        spoilt.append((folder / "config.json").read_bytes())
    assert spoilt[0] == spoilt[1]
