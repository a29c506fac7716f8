"""Errors of any origin: one JSON object under `--json`, two lines without it, a trace with `--debug` alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import command_line, in_own_process

from fico_export.runtime import vlm

KEYS = {"error", "hint", "exit"}


def _fails_with(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(vlm, "Vlm", fail)


@pytest.mark.parametrize(
    "line",
    [
        ["run", "--json"],
        ["run", "BUNDLE", "--json"],
        ["run", "--json", "BUNDLE", "--prompt"],
        ["run", "BUNDLE", "--prompt", "a", "--json=yes"],
        ["run", "BUNDLE", "--prompt", "a", "--max-new-tokens", "many", "--json"],
        ["run", "BUNDLE", "--prompt", "a", "--unknown", "--json"],
        ["exprot", "--json"],
        ["--json", "list", "models"],
        ["list", "--json"],
        ["list", "nonsense", "--json"],
        ["-v", "list", "models", "-q", "--json"],
        ["plan", "--keep", "x", "--json"],
    ],
    ids=" ".join,
)
def test_a_wrong_request_is_one_object(fico, line):
    refused = fico(*line)

    assert refused.code == 2
    assert refused.json.keys() == KEYS
    assert refused.json["exit"] == 2
    assert f"error: {refused.json['error']}\nhint:  {refused.json['hint']}\n" == refused.err


def test_the_hint_of_a_wrong_request_is_a_command_that_works(fico):
    hint = fico("run", "--json").json["hint"]

    assert hint == "see `fico run --help`"
    assert fico("run", "--help").code == 0


@pytest.mark.parametrize("line", [["run", "B", "--prompt", "--json"], ["list", "models", "--", "--json"]])
def test_json_as_a_value_or_after_a_double_dash_is_not_the_flag(fico, line):
    refused = fico(*line)

    assert refused.code == 2
    assert refused.out == ""


def test_an_error_nobody_expected_is_a_bug_and_says_how_to_report_it(fico, bundle, monkeypatch):
    _fails_with(monkeypatch, ZeroDivisionError("a number\nby zero"))
    plain = fico("run", bundle, "--prompt", "What?")
    plain.refuses("unexpected ZeroDivisionError: a number by zero", "a bug of fico_export", "--debug", code=1)
    answer = fico("run", bundle, "--prompt", "What?", "--json")

    assert answer.code == answer.json["exit"] == 1
    assert answer.json.keys() == KEYS
    assert "Traceback" not in answer.err


def test_debug_shows_the_trace_of_a_bug_on_stderr(fico, bundle, monkeypatch):
    _fails_with(monkeypatch, ZeroDivisionError())
    for line in (["run", bundle, "--prompt", "a", "--debug"], ["--debug", "run", bundle, "--prompt", "a"]):
        shown = fico(*line, "--json")

        assert shown.json["exit"] == 1
        assert "Traceback" in shown.err
        assert "ZeroDivisionError" in shown.err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(13, "Permission denied", "/a/file"),
            ["Permission denied: /a/file", "let this user"],
        ),
        (OSError(28, "No space left on device"), ["No space left on device", "free some space"]),
        (MemoryError(), ["not enough memory", "a smaller model"]),
        (EOFError("Ran out of input"), ["unexpected EOFError: Ran out of input", "a bug"]),
        (BrokenPipeError(32, "Broken pipe"), ["another program", "has ended"]),
        (ImportError("libGL.so.1: no such file", name="cv2"), ["cv2 cannot be imported: libGL.so.1"]),
        (ModuleNotFoundError("no", name="pydantic_core._x"), ["pydantic_core._x is not installed"]),
        (SystemExit("a library's farewell"), ["a library's farewell"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_of_the_system_are_named_for_what_they_are(fico, bundle, monkeypatch, error, words):
    _fails_with(monkeypatch, error)
    fico("run", bundle, "--prompt", "What?").refuses(*words, code=1)

    assert fico("run", bundle, "--prompt", "What?", "--json").json["exit"] == 1


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("torch.nn", "export"),
        ("matplotlib.pyplot", "report"),
        ("tensorrt_rtx", "rtx"),
        ("cuda.bindings", "rtx"),
    ],
)
def test_a_missing_package_names_its_extra(fico, bundle, monkeypatch, package, extra):
    _fails_with(monkeypatch, ModuleNotFoundError("no", name=package))
    answer = fico("run", bundle, "--prompt", "What?", "--json")

    assert answer.json["exit"] == 2
    assert package.partition(".")[0] in answer.json["error"]
    assert f".[{extra}]" in answer.json["hint"]


def test_what_a_library_prints_is_not_on_the_stdout_of_json(fico, bundle, monkeypatch):
    plain = vlm.Vlm.chat

    def chat(self, *args):
        sys.stdout.write("a banner\n")
        return plain(self, *args)

    monkeypatch.setattr(vlm.Vlm, "chat", chat)
    answer = fico("run", bundle, "--prompt", "What?", "--max-new-tokens", 2, "--json")

    assert answer.json["token_ids"]
    assert "a banner" in answer.err


def test_a_package_that_cannot_be_imported_at_all_is_an_object_too():
    program = "import sys; sys.modules['typer'] = None; from fico_export.cli.main import main; main()"
    broken = in_own_process([sys.executable, "-c", program, "list", "models", "--json"])

    assert broken.code == broken.json["exit"] == 1
    assert "typer is not installed" in broken.json["error"]
    assert "Traceback" not in broken.err


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_a_reader_that_leaves_ends_a_command_without_a_word(arguments):
    line = command_line("fico", "list", "devices", "--verbose", *arguments)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
        process.wait(120)

    assert process.returncode == 1
    assert said == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_under_stdout_is_an_error():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command_line("fico", "list", "backends"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\nhint:  free some space, or use another disk\n"
