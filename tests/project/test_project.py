"""Promises about the project itself: its names, its documents, its layers, its tests."""

import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import fico_export
from fico_export import errors, models, reducers, tables
from fico_export.devices import gpu, targets
from fico_export.models import decoders
from fico_export.models.decoders.plain import PlainDecoder
from fico_export.models.decoders.static import StaticDecoder
from fico_export.reducers.base.reducer import Reducer, Site

ROOT = Path(__file__).parents[2]


def test_the_package_offers_what_it_says():
    assert all(hasattr(fico_export, name) for name in fico_export.__all__)
    assert callable(fico_export.export)
    assert callable(fico_export.load)
    assert callable(fico_export.verify)


def test_a_wheel_says_that_its_types_are_to_be_read():
    """PEP 561. Hatch packs every file of the folder that git does not ignore."""
    selected = tables.parse((ROOT / "pyproject.toml").read_text(), "pyproject.toml")["tool"]["hatch"]["build"]

    assert selected == {"targets": {"wheel": {"packages": ["fico_export"]}}}
    assert (ROOT / "fico_export" / "py.typed").is_file()
    assert not {"py.typed", "*.typed"} & set((ROOT / ".gitignore").read_text().split())


def test_every_error_has_a_fix_and_an_exit_code():
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.FicoError)]
    for kind in kinds:
        assert kind("what", fix="fix").exit_code == (2 if issubclass(kind, errors.ConfigError) else 1)
        with pytest.raises(TypeError):
            kind("what")


def test_the_error_tree_in_the_docstring_is_the_real_one():
    drawn = set(re.findall(r"[A-Z]\w+Error", errors.__doc__ or ""))

    assert drawn == {
        n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, errors.FicoError)
    }


def test_every_method_says_what_it_is():
    for name, summary in reducers.summaries().items():
        record = reducers.get(name)

        assert summary.endswith(".")
        if isinstance(record, Reducer):
            assert (record.schedule is not None) == (record.site in (Site.ENCODER_LAYER, Site.DECODER_LAYER))


def test_every_target_is_read_under_its_own_name():
    for name in targets.names():
        assert targets.get(name).name == name


def test_every_target_names_a_form_of_the_decoder_and_whether_its_cache_is_static():
    for target in map(targets.get, targets.names()):
        module = typing.get_type_hints(decoders.form(target.decoder).module).get("return", PlainDecoder)

        assert target.static_cache == issubclass(module, StaticDecoder), target.name


def test_the_aliases_are_known():
    assert models.aliases()["llava-1.5-7b"] == "llava-hf/llava-1.5-7b-hf"
    assert {"llava-1.5-13b", "bakllava"} <= models.aliases().keys()


def test_a_new_file_in_the_folder_is_a_new_method(tmp_path):
    """The folder is the registry: a copy of the package with one more file lists and runs it."""
    package = tmp_path / "fico_export"
    subprocess.run(["cp", "-r", str(ROOT / "fico_export"), str(package)], check=True)
    source = (package / "reducers" / "uniform.py").read_text()
    (package / "reducers" / "every_nth.py").write_text(
        source.replace("Uniform sampling", "A method of one's own")
    )
    code = (
        "from fico_export import reducers; "
        "assert 'every-nth' in reducers.names(); "
        "assert reducers.get('every-nth').apply; "
        "print(reducers.summaries()['every-nth'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert result.stdout.startswith("A method of one's own")


def test_gpu_tests_fail_where_a_gpu_is_required_and_missing(tmp_path):
    if gpu.count():
        pytest.skip("there is a GPU")
    environment = {**os.environ, "FICO_REQUIRE_GPU": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/runtime/test_cuda.py",
        "-k",
        "auto",
    ]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert "FICO_REQUIRE_GPU=1, and there is no GPU" in result.stdout
