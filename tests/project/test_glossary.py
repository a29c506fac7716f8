"""docs/glossary.md explains words that are used, each once, shortly, in alphabetical order."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
ENTRIES = re.findall(r"^## (.+)\n\n((?:.+\n)+)", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def elsewhere():
    """Code and documents without the glossary itself."""
    files = [*ROOT.glob("fico_export/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path != GLOSSARY).lower()


@pytest.mark.parametrize("word", [word for word, _ in ENTRIES])
def test_a_word_that_is_explained_is_used(word, elsewhere):
    used = re.escape(word.lower()).replace(r"\ ", r"[\s_-]+").replace("kept", "(?:kept|keep)")

    assert re.search(rf"\b{used}s?\b", elsewhere)


def test_entries_are_in_order_and_one_or_two_sentences_each():
    words = [word.lower() for word, _ in ENTRIES]

    assert len(words) == GLOSSARY.read_text(encoding="utf-8").count("\n## ")
    assert words == sorted(set(words))
    for word, text in ENTRIES:
        assert len(re.findall(r"\.(?=\s|$)", text)) <= 2, word


def test_the_words_of_the_design_are_explained():
    explained = {word for word, _ in ENTRIES}

    assert {"site", "cue", "stage", "profile", "layout", "form", "bundle", "plan", "budget"} <= explained


def test_the_readme_leads_to_it():
    assert "(docs/glossary.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
