"""What `scripts/static_facts.py` counts holds for the package, and is found where it is broken."""

import shutil
import sys

import additions
import pytest
import static_facts

PLANTED = {
    "long.py": "x = 1\n" * 401,
    "body.py": "def f():\n    'Says.'\n" + "    x = 1\n" * 61 + "\n\ndef g():\n    'Says.'\n" + "    x = 1\n" * 60,
    "a.py": "def f():\n    from planted import b\n    return b\n",
    "b.py": "import planted.c\n",
    "c.py": "from planted.a import f\n",
    "d.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import planted.e\n",
    "e.py": "import planted.d\n",
    "private.py": "import os\n\nfrom planted.long import _x\n\n\nclass A:\n    def __init__(self):\n        self._own = _x\n\n\n"
    "def f(a, other):\n    os._exit(a._own)\n    return other._theirs\n",
}  # fmt: skip


@pytest.fixture
def planted(tmp_path):
    """A package with one break of each rule."""
    package = tmp_path / "planted"
    package.mkdir()
    for file, text in {"__init__.py": "", **PLANTED}.items():
        (package / file).write_text(text)
    yield package
    for module in [name for name in sys.modules if name.split(".")[0] == "planted"]:
        del sys.modules[module]


@pytest.mark.parametrize("fact", sorted(static_facts.FACTS))
def test_a_fact_holds(fact):
    assert static_facts.FACTS[fact](static_facts.PACKAGE) == []


def test_a_file_and_a_body_that_are_too_long_are_found(planted):
    assert static_facts.long_files(planted) == ["planted/long.py: 401 lines"]
    assert static_facts.long_functions(planted) == ["planted/body.py:1: f has 61 lines"]


def test_a_circle_is_found_though_a_function_closes_it_and_annotations_close_none(planted):
    (circle,) = static_facts.circles(planted)
    assert {"planted.a", "planted.b", "planted.c"} == set(circle.split(" ← "))
    (planted / "c.py").unlink()
    (planted / "b.py").write_text("")

    assert static_facts.circles(planted) == []
    (circle,) = static_facts.circle(planted, annotations=True)
    assert {"planted.d", "planted.e"} == set(circle.split(" ← "))


def test_private_names_of_other_modules_are_found(planted):
    assert static_facts.private_names(planted) == [
        "planted/private.py:3: _x",
        "planted/private.py:13: _theirs",
    ]


def test_a_second_list_of_reducers_is_another_file_to_touch(tmp_path):
    package = tmp_path / "fico_export"
    shutil.copytree(static_facts.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "model"))
    (package / "plan" / "own.py").write_text("KNOWN = {'dart': 1, 'tome': 2}\n")
    (package / "plan" / "other.py").write_text("KNOWN = ('dart', 'another word')\n")
    found = additions.breaks("a reducer")(package)

    assert found[0].startswith("plan/own.py ")
    assert found[1].startswith("2 files")
    assert len(found) == 2


def test_a_registry_that_does_not_read_its_folder_is_found(tmp_path):
    package = tmp_path / "fico_export"
    shutil.copytree(static_facts.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "model"))
    registry = package / "reducers" / "__init__.py"
    before = 'Path(__file__).parent.glob("*.py")'
    text = registry.read_text()
    assert before in text
    registry.write_text(text.replace(before, 'map(Path(__file__).parent.joinpath, ["dart.py"])'))

    assert "reducers alone is not known: KeyError: 'made-up'" in additions.breaks("a reducer")(package)[0]


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--check"], 1)])
def test_the_script_prints_what_is_broken_and_fails_where_it_is_asked_to(options, code, monkeypatch, capsys):
    facts = {"no file is long": lambda package: [], "no name is private": lambda package: ["a.py:1: _x"]}
    monkeypatch.setattr(static_facts, "FACTS", facts)
    monkeypatch.setattr(sys, "argv", ["static_facts.py", *options])
    with pytest.raises(SystemExit) as ended:
        static_facts.main()

    assert ended.value.code == code
    assert "yes  no file is long\nno   no name is private\n       a.py:1: _x\n" in capsys.readouterr().out
