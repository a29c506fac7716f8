"""Signals at any moment of a command: it ends as interrupted, whatever library the signal met."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from cli_tools import command_line, in_own_process, started
from exhaustive import exhaustive

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

SAID = "interrupted; nothing half-written remains"
SIGNAL_HERE = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
WRAPS = f"""
import jinja2
def generate(self, *args, **options):
    try:
        {SIGNAL_HERE}
    except BaseException as error:
        raise ValueError("an error of its own") from error
jinja2.Template.generate = generate
"""
SWALLOWS = f"""
import jinja2
plain = jinja2.Template.generate
def generate(self, *args, **options):
    try:
        {SIGNAL_HERE}
    except KeyboardInterrupt:
        pass
    return plain(self, *args, **options)
jinja2.Template.generate = generate
"""
CALLS_BACK = f"""
import jinja2
plain = jinja2.Template.generate
class Noisy:
    def __del__(self):
        {SIGNAL_HERE}
def generate(self, *args, **options):
    Noisy()
    return plain(self, *args, **options)
jinja2.Template.generate = generate
"""
AT_AN_IMPORT = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == NAME:
            import os, signal
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
"""
HANGS = """
import jinja2, time
def generate(self, *args, **options):
    try:
        print("rendering", file=sys.stderr, flush=True)
        time.sleep(300)
    finally:
        print("cleaning up", file=sys.stderr, flush=True)
        time.sleep(300)
jinja2.Template.generate = generate
"""
# The shell that native code waits for says so: Python has no step between the word and the wait, where its handler could run.
IN_NATIVE_CODE = """
import ctypes, jinja2
def generate(self, *args, **options):
    ctypes.CDLL(None).system(b"echo rendering >&2; exec sleep 150 >/dev/null 2>&1")
jinja2.Template.generate = generate
"""
# The last moments of a process: Python's own last words, and the C library's, when there is no Python any more.
AT_EXIT = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.NUMBER)"
AFTER_PYTHON = """
import ctypes, signal
libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc["raise"], ctypes.c_void_p), ctypes.c_void_p(signal.NUMBER), None)
"""


def _patched(patch, *arguments):
    program = f"import sys\n{patch}\nfrom fico_export.cli.main import main\nmain()"
    return [sys.executable, "-c", program, *map(str, arguments)]


@pytest.mark.parametrize("patch", [WRAPS, SWALLOWS, CALLS_BACK], ids=["wraps", "swallows", "calls-back"])
def test_a_signal_inside_a_library_ends_as_interrupted_whatever_the_library_makes_of_it(bundle, patch):
    line = _patched(patch, "run", bundle, "--prompt", "What?", "--max-new-tokens", 5, "--json")
    stopped = in_own_process(line)

    assert stopped.code == 130, stopped.err
    assert stopped.json == {"error": SAID, "hint": "run the same command again", "exit": 130}
    assert SAID in stopped.err
    assert "Traceback" not in stopped.err
    assert "an error of its own" not in stopped.err


@pytest.mark.parametrize("name", ["typer", "rich.progress", "onnxruntime", "fico_export.runtime.vlm"])
def test_a_signal_during_an_import_ends_as_interrupted(bundle, name):
    line = _patched(AT_AN_IMPORT.replace("NAME", repr(name)), "run", bundle, "--prompt", "What?", "--json")
    stopped = in_own_process(line)

    assert stopped.code == 130, stopped.err
    assert stopped.json["error"] == SAID
    assert "Traceback" not in stopped.err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", exhaustive("SIGHUP")])
def test_a_signal_at_any_moment_of_an_answer_ends_as_interrupted(bundle, name):
    number = signal.Signals[name]
    line = _patched(
        "print('begun', file=sys.stderr, flush=True)",
        "run",
        bundle,
        "--prompt",
        "What?",
        "--max-new-tokens",
        1900,
        "--json",
    )
    for wait in (0.1, 0.4, 0.9, 1.6, 2.5):
        process = started(line)
        assert process.stderr.readline() == "begun\n"
        time.sleep(wait)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)

        if process.returncode == 0:  # done before the signal came
            assert json.loads(out)["finish_reason"]
            continue
        if process.returncode == -number:  # before Python had reached the first line of the command
            assert wait == 0.1
            continue
        said = json.loads(out)
        assert process.returncode == 130, err
        assert said.get("exit") == 130 or said["finish_reason"]  # interrupted between its answer and its end
        assert "Traceback" not in err


@pytest.mark.parametrize("moment", [AT_EXIT, AFTER_PYTHON], ids=["at-exit", "after-python"])
def test_a_signal_after_the_answer_leaves_its_exit_code(moment, bundle):
    """Python puts its handlers back as it ends: what comes then would kill the process."""
    patch = moment.replace("NUMBER", "SIGTERM")
    answered = in_own_process(
        _patched(patch, "run", bundle, "--prompt", "What?", "--max-new-tokens", 2, "--json")
    )

    assert answered.code == 0, answered.err
    assert answered.json["finish_reason"]
    assert "Traceback" not in answered.err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_after_a_refusal_leaves_its_exit_code(name, tmp_path):
    refused = in_own_process(_patched(AFTER_PYTHON.replace("NUMBER", name), "run", tmp_path, "--json"))

    assert refused.code == 2, refused.err
    assert refused.json["exit"] == 2


def test_a_second_signal_ends_at_once_what_does_not_clean_up(bundle):
    _ended_by_two_signals(_patched(HANGS, "run", bundle, "--prompt", "What?", "--json"), "cleaning up\n")


def test_a_second_signal_ends_native_code_too(bundle):
    _ended_by_two_signals(_patched(IN_NATIVE_CODE, "run", bundle, "--prompt", "What?", "--json"), None)


def test_a_signal_that_comes_twice_at_once_leaves_time_to_clean_up(bundle):
    """As `timeout` sends it: to the process, and to its group."""
    patch = WRAPS.replace(SIGNAL_HERE, f"{SIGNAL_HERE}; {SIGNAL_HERE}")
    stopped = in_own_process(_patched(patch, "run", bundle, "--prompt", "What?", "--json"))

    assert stopped.code == 130
    assert stopped.json["error"] == SAID


def test_an_ignored_hang_up_stays_ignored(bundle):
    """As `nohup` has it."""
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    answered = in_own_process(
        _patched(
            ignored + SWALLOWS.replace("SIGTERM", "SIGHUP"), "run", bundle, "--prompt", "What?", "--json"
        )
    )

    assert answered.code == 0, answered.err
    assert answered.json["finish_reason"]


def _ended_by_two_signals(line, cleaning):
    process = started(line)
    while process.stderr.readline() != "rendering\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    if cleaning:
        assert process.stderr.readline() == cleaning
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, err = process.communicate(timeout=120)

    assert process.returncode == 130
    assert time.monotonic() - began < 100  # not the 150 s or more that it would have taken
    assert json.loads(out)["exit"] == 130
    assert "Traceback" not in err


def test_help_is_shown_to_a_process_whose_streams_are_closed():
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        line = " ".join(f"'{word}'" for word in command_line("fico", "list", "backends"))
        done = subprocess.run(f"{line} {closed}", shell=True, capture_output=True, text=True, check=False)

        assert done.returncode == 0, done.stderr
