"""The front page: its commands run, and print what it shows."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import exhaustive
import pytest

from fico_export.cli.main import app, export_app, invoke

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICKSTART = ROOT / "scripts" / "quickstart.sh"
# What a machine decides: times, per cents of them, sizes of files that hold a date or a time.
MEASURED = re.compile(
    r"(?<=preprocess )\d+|(?<=vision )\d+(?= ·)|(?<=embed )\d+(?= ·)|(?<=prefill )\d+(?= ·)|(?<=decode )\d+(?= ms)"
    r"|\d+(?:\.\d+)?(?= s\b| s$| ms\b| kB\b|% of it)|\d+\.\d+ \(\d+\.\d+–\d+\.\d+\)"
)


def console_examples():
    """Each command of the README that needs no download, and the lines shown below it."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = example.partition("\n")
            if command.startswith(("fico", "python -c")) and "llava" not in command:
                found.append((command, shown))
    return found


def only_shown(command):
    """Whether a command exports what no other reads, in a form that other tests export: only its lines are to be seen."""
    return any(form in command for form in ("--precision int4", "--method g-prune", "--method ficoco-v@192"))


def pattern(shown):
    """A pattern of what is shown: `…` alone is any lines, within one any text; times and blanks are free."""
    lines = [r"(?:.*\n)*?" if line.strip() == "…" else f"{_of_line(line)}\n" for line in shown.splitlines()]
    return re.compile("".join(lines))


def _of_line(line):
    words = [
        ".*".join(
            r"[\d.]+(?: \([\d.]+–[\d.]+\))?".join(map(re.escape, MEASURED.split(part)))
            for part in piece.split("…")
        )
        for piece in re.split(r" {2,}", line)
    ]
    return " +".join(words)


def test_the_commands_of_the_readme_print_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = console_examples()
    assert len(examples) >= 15
    assert sum(only_shown(command) for command, _ in examples) == 3
    if not exhaustive.ASKED:
        examples = [example for example in examples if not only_shown(example[0])]
    for command, shown in examples:
        name, *arguments = shlex.split(command)
        if name == "python":
            subprocess.run([sys.executable, *arguments], check=True)
            continue
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = invoke(export_app if name == "fico-export" else app, name, arguments)

        assert code == 0, f"{command}: {said.getvalue()}"
        assert shown.strip(), f"{command} shows no output"
        assert pattern(shown).fullmatch(said.getvalue()), f"{command} prints\n{said.getvalue()}"


def test_a_wrong_answer_on_the_front_page_would_be_seen():
    shown = "185\n[preprocess 15 · vision 417 · embed 32 · prefill 27 · decode 63 ms · first token 491 ms]\n…\nend\n"

    assert pattern(shown).fullmatch(shown.replace("417", "9").replace("491", "1.5"))
    assert pattern(shown).fullmatch(shown.replace("…", "more\nand more"))
    assert not pattern(shown).fullmatch(shown.replace("185", "184"))
    assert not pattern(shown).fullmatch(shown.replace("end", "other"))


def test_the_python_of_the_readme_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    """The comment behind each `print` is what it prints."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    capsys.readouterr()
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    shown = re.findall(r"^print\(.*\)  # (.+)$", block, re.MULTILINE)

    assert len(shown) == block.count("\nprint(")
    assert pattern("\n".join(shown)).fullmatch(printed), printed


def test_readme_and_quickstart_name_the_fields_and_the_method_that_are_right():
    assert "`{error, hint, exit}`" in README
    assert "--method dpp" in QUICKSTART.read_text()


def test_the_quickstart_ends_with_right_answers(make_bundle, tmp_path):
    """Its commands but the virtual environment's, with the bundles of this session in the place of its exports."""
    script = QUICKSTART.read_text()
    exports = re.findall(r"^fico-export --model demo (.*) --overwrite$", script, re.MULTILINE)
    assert exports == ["--keep 64 --method dpp", "--method none"]
    reduced = make_bundle("demo", 64, method="dpp", verify=False)
    full = make_bundle("demo", method="none", verify=False)
    (line,) = re.findall(r"^python (scripts/ask_demo.py) \S+ \S+$", script, re.MULTILINE)
    asked = subprocess.run(
        [sys.executable, ROOT / line, full, reduced, "--out", tmp_path / "demo.png", "--repeats", "1"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "wrong" not in asked.stdout
    assert "576 tokens: 7 of 7 right; 64 tokens by dpp: 7 of 7 right" in asked.stdout
    assert (tmp_path / "demo.png").is_file()


@pytest.mark.parametrize("extra", ["export", "report"])
def test_the_readme_installs_extras_that_there_are(extra):
    assert f"[{extra}]'" in README
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
