"""Fixtures of the commands' tests: the two commands, a checkpoint to damage, exports that trace one small graph."""

import tempfile

import pytest
from cli_tools import copied, in_this_process

from fico_export.exporter import write


@pytest.fixture
def fico(capsys):
    """fico(*arguments) → Outcome."""
    return lambda *arguments: in_this_process(capsys, "fico", *arguments)


@pytest.fixture
def bundle(make_bundle, tiny_checkpoint):
    """A good bundle of 16 of 64 visual tokens. Shared: copy it to change it."""
    return make_bundle(tiny_checkpoint, 16)


@pytest.fixture
def out(tmp_path):
    """Where `export` writes; its parent is not there before, and after a failure."""
    return tmp_path / "out" / "bundle"


@pytest.fixture
def export(capsys, tiny_checkpoint, out):
    """export(*arguments, model=…) → Outcome of an export to `out`."""

    def run(*arguments, model=tiny_checkpoint):
        return in_this_process(capsys, "fico-export", "--model", model, "--out", out, *arguments)

    return run


@pytest.fixture
def refused(export, out, tmp_path, monkeypatch):
    """refused(*arguments, model=…, words=…): the export says why and how to fix it, and leaves nothing."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(*arguments, words=(), **options):
        export(*arguments, **options).refuses(*words)
        assert not out.parent.exists()
        assert not list(temporary.iterdir())

    return run


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A checkpoint of one's own."""
    return copied(tiny_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def embedding_only(monkeypatch):
    """Exports trace the smallest graph alone, in under a second, for what has nothing to do with the graphs."""
    every = write.graph_jobs

    def embedding(*given, **options):
        return [job for job in every(*given, **options) if job.name == "embed_tokens"]

    monkeypatch.setattr(write, "graph_jobs", embedding)
