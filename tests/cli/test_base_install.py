"""Every verb in a base install, without torch and what else the extras bring: it works, or says which extra it needs."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fico_export.cli.main import app

ROOT = Path(__file__).parents[2]
VERBS = tuple(typer.main.get_command(app).commands)
# What a verb is given; one that is not here gets a bundle.
GIVEN = {
    "export": ["--out", "OUT"],
    "run": ["BUNDLE", "--prompt", "hi", "--max-new-tokens", "2"],
    "show": ["BUNDLE", "--image", "IMAGE", "--out", "OUT.png"],
    "report": ["BUNDLE", "--out", "OUT.html"],
    "profile": ["BUNDLE", "--iterations", "1", "--warm-up", "0", "--new-tokens", "2", "--out", "OUT.json"],
    "plan": [],
    "list": ["devices"],
    "doctor": [],
    "build": ["BUNDLE", "--target", "rtx", "--graph", "vision_encoder"],
    "chat": ["BUNDLE", "--max-new-tokens", "2"],
    "pack": ["BUNDLE", "--out", "OUT.tar"],
    "unpack": ["OUT.tar", "--out", "UNPACKED"],
    "deploy": ["BUNDLE", "--host", "a;b"],
}
WORKS = {"chat", "run", "show", "report", "profile", "inspect", "list", "doctor", "pack", "unpack"}
NEEDS = {"export": "export", "verify": "export", "plan": "export", "lint": "export", "build": "rtx"}  # fmt: skip
PLACE = re.compile("^(BUNDLE|IMAGE|OUT|UNPACKED)")
# Of this process and of those that it starts: what the extras bring is not found.
SITE = """
import sys

finders = list(sys.meta_path)

class Base:
    find_distributions = staticmethod(finders[-1].find_distributions)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            return None
        return next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)

sys.meta_path[:] = [Base()]
"""
PROGRAM = """
import contextlib, io, json, sys

lines = json.load(sys.stdin)
from fico_export.cli.main import app, invoke

for line in lines:
    out, err, sys.stdin = io.StringIO(), io.StringIO(), io.StringIO("What is it?\\n")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = invoke(app, "fico", line)
        except BaseException as error:
            code = repr(error)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def not_of_a_base_install():
    """Modules of the installed packages that the base dependencies do not bring."""
    waiting, base = ["fico_export"], {"fico-export", "pip", "setuptools"}
    while waiting:
        for text in metadata.requires(waiting.pop()) or ():
            needed = Requirement(text)
            name = canonicalize_name(needed.name)
            if name not in base and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
                base.add(name)
                waiting.append(needed.name)
    return sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if not any(canonicalize_name(owner) in base for owner in owners)
    )


@pytest.fixture(scope="module")
def ran(make_bundle, tiny_checkpoint, tmp_path_factory):
    """ran[verb] → (exit code, stdout, stderr) with --json; ran[verb, "plain"] without."""
    places = {"BUNDLE": make_bundle(tiny_checkpoint, 16), "IMAGE": tmp_path_factory.mktemp("i") / "i.png"}
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(places["IMAGE"])
    lines = {}
    for form, flags in (("json", ["--json"]), ("plain", [])):
        out = tmp_path_factory.mktemp(form)
        at = places | {"OUT": out / "out", "UNPACKED": out / "unpacked"}
        for verb in sorted(VERBS):
            words = GIVEN.get(verb, ["BUNDLE"])
            line = [PLACE.sub(lambda found: str(at[found[0]]), word) for word in words]  # noqa: B023
            lines[verb, form] = [verb, *line, *flags]
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(f"EXTRAS = {set(not_of_a_base_install())}\n{SITE}")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
        input=json.dumps(list(lines.values())),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(lines, map(json.loads, done.stdout.splitlines()), strict=True))


def test_what_the_extras_bring_is_not_there():
    blocked = not_of_a_base_install()

    assert {"torch", "transformers", "onnx", "onnx_ir", "ml_dtypes", "matplotlib", "pytest"} <= set(blocked)
    assert not {"numpy", "PIL", "onnxruntime", "typer", "rich", "pydantic", "jinja2", "tokenizers"} & set(
        blocked
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_works_or_is_refused_with_its_fix(ran, verb):
    code, out, err = ran[verb, "json"]

    assert code in (0, 1, 2), (code, err)
    assert out.count("\n") == 1, (out, err)
    told = json.loads(out)
    if "error" in told:
        assert told["hint"]
        assert told["exit"] == code > 0
    code, out, err = ran[verb, "plain"]
    assert code in (0, 1, 2), (code, err)
    assert "Traceback" not in err
    assert code == 0 or out or "\nhint:  " in err


@pytest.mark.parametrize("verb", sorted(WORKS & set(VERBS)))
def test_what_a_device_needs_works(ran, verb):
    for form in ("json", "plain"):
        code, _, err = ran[verb, form]
        assert code == 0, err


@pytest.mark.parametrize(("verb", "extra"), NEEDS.items())
def test_what_an_extra_brings_is_named_with_the_extra(ran, verb, extra):
    told = json.loads(ran[verb, "json"][1])

    assert told["exit"] == 2, told
    assert f"in a clone of fico_export: pip install '.[{extra}]'" in told["hint"]
