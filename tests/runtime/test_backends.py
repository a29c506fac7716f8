"""The folder of backends is their registry: a file that is added is listed, offered and chosen."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from fico_export.errors import ConfigError
from fico_export.runtime import backends
from fico_export.runtime.backends.choice import choose

FILE = '''
"""A backend of one's own."""

from fico_export.errors import ConfigError
from fico_export.runtime.backends.base import Backend


def problem(folder, manifest):
    missing = manifest.precision == "int4"
    return ConfigError("this machine has no abacus", fix="borrow one") if missing else None


BACKEND = Backend(name="my-abacus", summary="beads", rank=99, problem=problem, open=lambda *given: None)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_abacus.py").write_text(FILE)
    (tmp_path / "beads.py").write_text("# what the backend is made of, and none itself\n")
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    yield
    sys.modules.pop("fico_export.runtime.backends.my_abacus", None)


def bundle(target="portable", precision="fp32"):
    return SimpleNamespace(target=target, precision=precision, cache_rows=None)


def test_a_record_bears_the_name_of_its_file():
    assert {"ort-cpu", "ort-cuda", "trt", "rtx"} <= {*backends.names()}
    assert [backends.get(name).name for name in backends.names()] == backends.names()


def test_a_file_that_is_added_is_a_backend(own, tmp_path):
    assert "my-abacus" in backends.names()
    assert "beads" not in backends.names()
    assert backends.get("my-abacus").summary == "beads"
    assert choose("my-abacus", tmp_path, bundle()).name == "my-abacus"
    assert choose("auto", tmp_path, bundle()).name == "my-abacus"  # its rank is the highest


def test_auto_passes_over_what_cannot_run_and_says_why_only_to_those_who_asked(own, tmp_path):
    assert choose("auto", tmp_path, bundle(precision="int4")).name in ("ort-cpu", "ort-cuda")
    with pytest.raises(ConfigError, match="no abacus"):
        choose("my-abacus", tmp_path, bundle(precision="int4"))


def test_a_target_that_names_its_backends_is_run_by_no_other(own, tmp_path):
    assert choose("auto", tmp_path, bundle(target="ort")).name == "ort-cpu"
    with pytest.raises(ConfigError, match="my-abacus does not run a bundle for target ort") as refused:
        choose("my-abacus", tmp_path, bundle(target="ort"))
    assert "--backend ort-cpu" in refused.value.fix


def test_names_are_offered_without_importing_what_runs():
    program = (
        "import sys; from fico_export.cli import options; from fico_export.runtime import backends; "
        "assert backends.names(); print(*{'numpy', 'onnxruntime', 'pydantic'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
