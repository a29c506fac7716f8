"""What reaches a person's terminal: how much of it, and never a control character from a stranger's file."""

import os
import pty
import re
import subprocess
import sys

import pytest
from cli_tools import copied, edit_json, in_own_process

HOSTILE = "\x1b]0;owned\x07\x1b[31mred\x9b1m\u202etxt.exe [bold]b[/bold] [red]"
# A name or a revision with controls is refused when the manifest is read.
MARKUP = "txt.exe [bold]b[/bold] [red]"
SHOWN = r"\x1b]0;owned\x07\x1b[31mred\x9b1m\u202etxt.exe [bold]b[/bold] [red]"


@pytest.fixture
def hostile(bundle, tmp_path):
    """A bundle whose manifest's texts drive a terminal."""
    made = copied(bundle, tmp_path / "bundle [red]x[/red]\x1b[31m")
    edit_json(made / "manifest.json", name=MARKUP, model__source=HOSTILE, model__revision=MARKUP)
    return made


def test_names_in_a_manifest_are_shown_with_their_controls_spelled_out(fico, hostile):
    shown = fico("inspect", hostile)

    assert shown.code == 0, shown.err
    assert shown.out.count(SHOWN) == 1
    assert shown.out.count(MARKUP) == 3
    assert not _controls(shown.out + shown.err)


def test_json_keeps_names_as_they_are(fico, hostile):
    assert fico("inspect", hostile, "--json").json["model"]["source"] == HOSTILE


def test_errors_show_controls_spelled_out_and_markup_as_it_is(fico, tmp_path):
    for line in (["inspect", tmp_path / HOSTILE], ["list", HOSTILE], ["run", tmp_path, "--" + HOSTILE]):
        refused = fico(*line)

        assert refused.code == 2
        assert SHOWN in refused.err
        assert not _controls(refused.err)


def test_a_trace_shows_controls_spelled_out(fico, tmp_path):
    traced = fico("inspect", tmp_path / HOSTILE, "--debug")

    assert "Traceback" in traced.err
    assert not _controls(traced.err)


def test_tables_and_warnings_show_names_as_they_are(fico, hostile):
    """`fico profile` draws with rich, whose markup these would be."""
    (hostile / "profile.json").mkdir()  # a warning: it cannot be kept there
    profiled = fico("profile", hostile, "--iterations", 1, "--warm-up", 0, "--new-tokens", 2)

    assert profiled.code == 0, profiled.err
    assert MARKUP in profiled.out
    assert "warning: not kept" in profiled.err
    assert r"bundle [red]x[/red]\x1b[31m" in profiled.err
    assert not _controls(profiled.out + profiled.err)


ANSWERS = """
import fico_export.runtime.vlm as vlm
class Stream(list):
    pass
plain = vlm.Vlm.chat
def chat(self, *args, **options):
    made = plain(self, *args, **options)
    asked = made.stream
    def stream(*args, **options):
        real = asked(*args, **options)
        for piece in real: pass
        pieces = Stream(["a\\x1b", "[31mb\\u202e", "\\tc\\n\\x9b1m"])
        pieces.answer = real.answer
        return pieces
    made.stream = stream
    return made
vlm.Vlm.chat = chat
from fico_export.cli.main import main
main()
"""


def test_an_answer_on_a_terminal_has_its_controls_spelled_out(bundle):
    line = [sys.executable, "-c", ANSWERS, "run", bundle, "--prompt", "What?", "--max-new-tokens", "2"]

    assert _on_a_terminal(line) == "a\\x1b[31mb\u202e\tc\r\n\\x9b1m\r\n"


def test_an_answer_in_a_file_is_as_the_model_gave_it(bundle):
    line = [sys.executable, "-c", ANSWERS, "run", str(bundle), "--prompt", "What?", "--max-new-tokens", "2"]

    assert in_own_process(line).out == "a\x1b[31mb\u202e\tc\n\x9b1m\n"


def test_quiet_leaves_the_result_alone(fico, export, bundle, embedding_only):
    asked = ["run", bundle, "--prompt", "What?", "--max-new-tokens", 3]
    plain, quiet, before = fico(*asked), fico(*asked, "--quiet"), fico("-q", *asked)

    assert plain.out == quiet.out == before.out
    assert "first token" in plain.err
    assert quiet.err == before.err == ""
    assert export("--keep", 4, "--no-verify", "-q").err == ""


def test_quiet_still_warns_and_fails_aloud(fico, bundle, tmp_path):
    made = copied(bundle, tmp_path / "bundle")
    (made / "profile.json").mkdir()
    warned = fico("profile", made, "--iterations", 1, "--warm-up", 0, "--new-tokens", 2, "-q")

    said = warned.err.splitlines()  # on a busy machine also that the stages do not sum up
    assert any(line.startswith("warning: not kept") for line in said)
    assert all(line.startswith("warning: ") for line in said)
    fico("inspect", tmp_path, "-q").refuses("is no bundle")


def test_verbose_tells_versions_and_steps(export, fico, embedding_only):
    told = export("--keep", 4, "--no-verify", "-v")

    assert told.code == 0
    assert re.match(r"fico_export \S+, Python \S+, ", told.err)
    assert "  trace embed_tokens …\n" in told.err
    assert re.search(r"^done in [\d.]+ s$", told.err, re.MULTILINE)
    assert "done in" in fico("-v", "list", "backends").err
    assert fico("list", "backends").err == ""


def test_verbose_of_list_means_its_entries(fico):
    assert fico("list", "methods", "-v").out == fico("list", "methods", "--verbose").out
    assert "  site: " in fico("list", "methods", "-v").out


def test_verbose_and_quiet_contradict_each_other(fico):
    for line in (["-v", "-q", "doctor"], ["-v", "doctor", "-q"], ["doctor", "-qv"]):
        fico(*line).refuses("--verbose and --quiet", "one of them")


def test_what_libraries_log_follows_the_volume():
    program = (
        "import logging; from fico_export.cli import listing; plain = listing._backends\n"
        "def noisy():\n"
        "    logging.getLogger('lib').info('a detail'); logging.getLogger('lib').warning('care\\x1b')\n"
        "    return plain()\n"
        "listing._backends = noisy\n"
        "from fico_export.cli.main import main; main()"
    )
    line = [sys.executable, "-c", program, "list", "backends"]
    plain, verbose, quiet = (in_own_process([*line, *flags]).err for flags in ([], ["--json"], ["-q"]))

    assert plain == verbose == quiet == "warning: care\\x1b\n"
    louder = in_own_process([*line[:3], "-v", *line[3:]]).err
    assert "lib: a detail\n" in louder


def _controls(text):
    return re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def _on_a_terminal(line):
    """What a command writes to a terminal; stderr goes nowhere."""
    mine, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        [str(word) for word in line], stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(mine, 4096):
                written += piece
        except OSError:  # the other end was closed
            pass
        assert process.wait(120) == 0
    os.close(mine)
    return written.decode()
