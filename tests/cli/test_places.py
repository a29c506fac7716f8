"""What is at --out is never lost: neither what was there, nor what appears there during the work."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from cli_tools import command_line, copied, started
from stub_bundles import FILES, write_engine, write_stub

from fico_export.bundle import scratch
from fico_export.bundle.output import written_file, written_folder
from fico_export.errors import ConfigError
from fico_export.exporter import write

posix = pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")
# Packs or unpacks up to the final step, and waits there to be killed.
STALLED = """
import sys, time
from fico_export.bundle import output
from fico_export.cli.main import main
def wait(*given):
    print("there", flush=True)
    time.sleep(600)
output.move_in = wait
main(sys.argv[1:])
"""


@pytest.fixture
def own(tmp_path):
    """A bundle."""
    return write_stub(tmp_path / "bundle")


@pytest.fixture
def packed(fico, own, tmp_path):
    """Its archive."""
    assert fico("pack", own, "--out", tmp_path / "b.tar").code == 0
    return tmp_path / "b.tar"


def everything(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_folder_that_appears_during_an_export_is_not_replaced(
    export, out, bundle, embedding_only, monkeypatch
):
    describe = write.files.describe

    def thesis(*given):
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
        return describe(*given)

    monkeypatch.setattr(write.files, "describe", thesis)

    export("--keep", 4, "--no-verify").refuses(f"{out} appeared meanwhile", "--out another folder")
    assert (out / "thesis.txt").read_text() == "years of work"
    assert everything(out.parent) == ["bundle", "bundle/thesis.txt"]
    shutil.rmtree(out)
    copied(bundle, out)
    monkeypatch.setattr(
        write.files, "describe", lambda *given: [(out / "thesis.txt").touch(), describe(*given)][1]
    )
    export("--keep", 4, "--no-verify", "--overwrite").refuses("holds 'thesis.txt'", "--out another folder")
    assert (out / "thesis.txt").exists()
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]


def test_a_checkpoint_that_changes_during_an_export_is_refused(
    export, out, embedding_only, checkpoint, monkeypatch
):
    describe = write.files.describe

    def changed(*given):
        with (checkpoint / "model.safetensors").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"abcd")
        return describe(*given)

    monkeypatch.setattr(write.files, "describe", changed)

    for arguments in (["--precision", "fp16"], ["--copy-weights"]):
        outcome = export("--keep", 4, "--no-verify", *arguments, model=checkpoint)
        outcome.refuses("model.safetensors changed while it was read", "the same command again")
        assert not out.parent.exists()


@pytest.mark.parametrize("found", ["file", "folder", "full folder", "link to nothing"])
def test_whatever_appears_is_left_as_it_is(found, tmp_path):
    place = tmp_path / "place"

    def appear():
        if found == "file":
            place.write_text("mine")
        elif found == "link to nothing":
            place.symlink_to("elsewhere")
        else:
            place.mkdir()
            if found == "full folder":
                (place / "mine").touch()

    with pytest.raises(ConfigError, match="appeared meanwhile"):  # noqa: PT012, SIM117
        with written_folder(place, overwrite=False) as new:
            (new / "file").touch()
            appear()
    left = everything(tmp_path)
    assert left == (["place", "place/mine"] if found == "full folder" else ["place"])
    place.unlink() if not place.is_dir() else shutil.rmtree(place)
    with pytest.raises(ConfigError, match="appeared meanwhile"):  # noqa: PT012, SIM117
        with written_file(place, ours=None) as new:
            new.write_text("ours")
            appear()
    assert everything(tmp_path) == left


def test_of_several_that_write_one_place_at_once_one_succeeds_and_the_others_say_so(packed, own, tmp_path):
    for line, place in (
        (command_line("fico", "unpack", packed, "--out", tmp_path / "u"), tmp_path / "u"),
        (command_line("fico", "pack", own, "--out", tmp_path / "p.tar"), tmp_path / "p.tar"),
    ):
        running = [started(line) for _ in range(4)]
        said = [process.communicate(timeout=120)[1] for process in running]

        assert sorted(process.returncode for process in running) == [0, 2, 2, 2], said
        assert sum(f"{place} appeared meanwhile" in text or f"{place} exists" in text for text in said) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"bundle", "b.tar", "u", "p.tar"}
    assert everything(tmp_path / "u") == everything(own)


def test_a_file_system_without_hard_links_is_as_good(monkeypatch, tmp_path):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(scratch.os, "link", link)
    with written_file(tmp_path / "a", ours=None) as new:
        new.write_text("first")
    with pytest.raises(ConfigError, match="appeared"), written_file(tmp_path / "a", ours=None) as new:
        new.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    assert everything(tmp_path) == ["a"]


def test_overwrite_replaces_a_bundle_with_what_commands_left_in_it(fico, packed, tmp_path):
    place = tmp_path / "place"
    assert fico("unpack", packed, "--out", place).code == 0
    write_engine(place)
    (place / "trt/rtx/timing.cache").touch()
    (place / "trt/rtx/trtexec").mkdir()
    (place / "trt/rtx/trtexec/model.times.json").touch()
    (place / "profile.json").write_text("{}")
    (place / "deploy/me@board").mkdir(parents=True)
    (place / "deploy/me@board/doctor.json").touch()

    assert fico("unpack", packed, "--out", place, "--overwrite").code == 0
    assert everything(place) == sorted([*FILES, "manifest.json", "onnx"])


def test_overwrite_replaces_a_bundle_of_an_earlier_version(fico, packed, own, tmp_path):
    content = json.loads((own / "manifest.json").read_text()) | {"schema_version": 1}
    (own / "manifest.json").write_text(json.dumps(content))

    assert fico("unpack", packed, "--out", own, "--overwrite").code == 0


@pytest.mark.parametrize(
    "name", ["thesis.txt", "onnx/thesis.txt", "trt/rtx/thesis.txt", "mine/a/b", "trt.txt"]
)
def test_overwrite_keeps_a_bundle_with_a_file_of_the_users_own(name, fico, packed, own):
    write_engine(own)
    (own / name).parent.mkdir(parents=True, exist_ok=True)
    (own / name).write_text("years of work")
    before = everything(own.parent)

    fico("unpack", packed, "--out", own, "--overwrite").refuses(repr(name), "no part of the bundle", "move")
    assert (own / name).read_text() == "years of work"
    assert everything(own.parent) == before


def test_overwrite_does_not_follow_links_out_of_a_bundle(fico, packed, own, tmp_path):
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "build.json").touch()
    (own / "trt").symlink_to(tmp_path / "engines")

    fico("unpack", packed, "--out", own, "--overwrite").refuses("'trt'", "no part of the bundle")
    assert (tmp_path / "engines" / "build.json").exists()


def test_a_link_at_out_stays_and_what_it_points_at_is_replaced(fico, packed, own, tmp_path):
    (tmp_path / "link").symlink_to(own)
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (own / "config.json").write_text("changed")

    assert fico("unpack", packed, "--out", tmp_path / "link", "--overwrite").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (own / "config.json").read_bytes() == FILES["config.json"]
    fico("unpack", packed, "--out", tmp_path / "round").refuses("leads nowhere", "--out another")


def test_places_that_nobody_wants_replaced_are_refused(fico, packed, own, tmp_path, monkeypatch):
    for place in (Path("/"), Path("/proc")):
        fico("unpack", packed, "--out", place, "--overwrite").refuses(
            "never replaced", f"--out {place / 'bundle'}"
        )
    monkeypatch.setenv("HOME", str(own))
    fico("unpack", packed, "--out", own, "--overwrite").refuses("the home folder")
    monkeypatch.setenv("HOME", str(tmp_path))
    (own / "onnx" / "deep").mkdir()
    monkeypatch.chdir(own / "onnx" / "deep")
    for place in (own, "../.."):
        fico("unpack", packed, "--out", place, "--overwrite").refuses("the current folder, or above it")
    fico("unpack", packed, "--out", tmp_path, "--overwrite").refuses("never replaced")
    assert everything(own) == sorted([*FILES, "manifest.json", "onnx", "onnx/deep"])


def test_neither_the_checkpoint_nor_a_folder_above_it_is_replaced(export, checkpoint, embedding_only):
    before = everything(checkpoint.parent)
    for place in (checkpoint, checkpoint.parent, checkpoint / "config.json"):
        for overwrite in ([], ["--overwrite"]):
            export("--keep", 4, "--out", place, *overwrite, model=checkpoint).refuses("is not a bundle")
    assert everything(checkpoint.parent) == before


def test_what_is_no_hint_is_not_given_as_one(fico, packed, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()

    said = fico("unpack", packed, "--out", tmp_path / "mine").err
    assert "hint:  give --out another folder" in said


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("verb", ["pack", "unpack"])
def test_what_a_stopped_pack_or_unpack_wrote_goes_at_once_or_with_the_next(
    verb, number, fico, own, packed, tmp_path
):
    place = tmp_path / "to" / ("b.tar" if verb == "pack" else "b")
    source = own if verb == "pack" else packed
    line = [*command_line("fico")[:2], STALLED, verb, str(source), "--out", str(place)]
    process = started(line)
    assert process.stdout.readline() == "there\n"
    process.send_signal(number)
    process.communicate(timeout=60)

    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert not place.parent.exists()
    else:
        assert [p.name.startswith(f".{place.name}.partial-") for p in place.parent.iterdir()] == [True]
    assert fico(verb, source, "--out", place).code == 0
    assert list(place.parent.iterdir()) == [place]


@posix
def test_only_scratch_folders_of_ours_that_nobody_holds_are_cleared(tmp_path):
    """Not what looks like one; not one that is held, whatever process ids say."""
    mine, link = tmp_path / ".place.partial-0123abcd", tmp_path / ".place.partial-0123abce"
    (mine / "new").mkdir(parents=True)
    (mine / "new" / "thesis.txt").touch()
    link.symlink_to(tmp_path / "elsewhere")
    other = tmp_path / f".place.partial-{os.getpid()}"
    other.mkdir()
    with written_folder(tmp_path / "place", overwrite=False) as held:
        child = os.fork()
        if child == 0:  # in another process, which holds nothing
            scratch.clear_abandoned(tmp_path / "place")
            os._exit(0 if held.is_dir() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (mine / "new" / "thesis.txt").exists()
    assert link.is_symlink()
    assert other.is_dir()


def test_a_file_that_is_no_earlier_result_is_not_replaced_by_one(tmp_path):
    drawing = tmp_path / "drawing.svg"
    for content in ("<svg>mine</svg>", "{}"):
        drawing.write_text(content)
        with pytest.raises(ConfigError, match="is not an earlier result"), written_file(drawing) as new:
            new.write_text("ours")
        assert drawing.read_text() == content
    drawing.write_text("<svg><!-- made by fico_export --></svg>")
    with written_file(drawing) as new:
        new.write_text("again")
    assert drawing.read_text() == "again"
    assert everything(tmp_path) == ["drawing.svg"]


def test_drawings_and_pages_replace_their_own_kind_alone(fico, bundle, demo_plot, tmp_path):
    """A plot, a page and a profile, each made twice, and then in the place of another file."""
    page = tmp_path / "page.html"
    for line, place in ((["report", bundle, "--out", page], page), (demo_plot, tmp_path / "plot.png")):
        assert fico(*line).code == 0, line
        assert fico(*line).code == 0
        place.write_bytes(b"mine")
        fico(*line).refuses("exists", "not an earlier result", "another file")
        assert place.read_bytes() == b"mine"


@pytest.fixture
def demo_plot(tmp_path, tiny_checkpoint):
    """A command line that draws a plot."""
    return ["plan", "--model", tiny_checkpoint, "--device", "orin-nx-16gb", "--out", tmp_path / "plot.png"]


def test_a_scratch_folder_whose_process_has_ended_is_cleared(tmp_path):
    code = "import os, sys; from pathlib import Path; from fico_export.bundle.output import written_file\nwith written_file(Path(sys.argv[1])): os._exit(0)"
    subprocess.run([*command_line("fico")[:2], code, tmp_path / "a"], check=True)
    assert len(everything(tmp_path)) == 2
    with written_file(tmp_path / "a") as new:
        new.touch()
    assert everything(tmp_path) == ["a"]
