"""Completion by the shell, asked of a real bash: verbs, options, names; paths are left to the shell."""

import os
import shutil
import subprocess

import pytest
from cli_tools import command_line

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="asks bash")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """complete(words…) → what bash offers for the last of them, and whether it adds paths."""
    folder = tmp_path_factory.mktemp("completion")
    for name in ("fico", "fico-export"):
        line = " ".join(f"'{word}'" for word in command_line(name))
        (folder / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"  # the flag then takes the shell's name
    scripts = {
        name: subprocess.run(
            [name, "--show-completion", "bash"], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for name in ("fico", "fico-export")
    }

    def ask(*words):
        function = scripts[words[0]].split("(")[0]
        listed = " ".join(f"'{word}'" for word in words)
        program = (
            f"{scripts[words[0]]}\nCOMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}\n"
            f"{function} {words[0]}; printf '%s\\n' \"${{COMPREPLY[@]}}\"; complete -p {words[0]}"
        )
        done = subprocess.run(
            ["bash", "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        *offered, rule = done.stdout.splitlines()
        return set(filter(None, offered)), "-o default" in rule

    return ask


def test_verbs_are_offered(complete):
    assert complete("fico", "")[0] >= {"export", "run", "inspect", "deploy"}
    assert complete("fico", "ins")[0] == {"inspect"}


def test_options_are_offered_for_both_commands(complete):
    assert complete("fico", "run", "--")[0] >= {"--image", "--prompt", "--json", "--quiet", "--verbose"}
    assert complete("fico-export", "--ke")[0] == {"--keep"}


def test_names_of_methods_and_kinds_are_offered(complete):
    assert complete("fico", "list", "dev")[0] == {"devices"}
    assert complete("fico-export", "--method", "div")[0] == {"divprune"}
    assert complete("fico", "run", "--backend", "ort-c")[0] == {"ort-cpu", "ort-cuda"}


@pytest.mark.parametrize(
    "words", [("fico", "run", "eng"), ("fico", "run", "--image", "pic"), ("fico", "inspect", "")]
)
def test_bundles_and_pictures_are_paths_that_the_shell_completes(complete, words):
    offered, paths = complete(*words)

    assert offered == set()
    assert paths
