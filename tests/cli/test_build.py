"""`fico build` with TensorRT-RTX, for GPUs that are not there: engines, what is said of them, and what is left alone."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import onnx_ir as ir
import pytest
from cli_tools import command_line, copied, edit_json, in_own_process, started

from fico_export.build import preflight
from fico_export.bundle.engines import Build

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install '.[rtx]'")
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
RTX = ("--target", "rtx")
TWO = (*RTX, "--graph", "vision_encoder", "--graph", "embed_tokens")
SMALL = (*RTX, "--graph", "embed_tokens", "--compute-capability", "8.6")


@pytest.fixture(scope="module")
def built(make_bundle, tiny_checkpoint, tmp_path_factory):
    """A bundle with two engines, and what was said. Copy it to change it."""
    folder = copied(make_bundle(tiny_checkpoint, 16), tmp_path_factory.mktemp("built") / "b")
    done = in_own_process(command_line("fico", "build", folder, *TWO, "--json"))
    assert done.code == 0, done.err
    return folder, done


@pytest.fixture
def own(built, tmp_path):
    return copied(built[0], tmp_path / "bundle")


def engines(folder):
    """Name → identity of each file below trt/rtx: a new file is another."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (folder / "trt/rtx").iterdir()}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_said_of_the_engines_is_true(built):
    folder, done = built
    told, build = done.json, Build.load(folder, "rtx")
    manifest = json.loads((folder / "manifest.json").read_text())

    assert (told["runtime"], told["version"]) == ("tensorrt_rtx", tensorrt_rtx.__version__)
    assert build.version == tensorrt_rtx.__version__
    assert build.compute_capabilities == told["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    assert build.timing_cache_sha256 is None
    assert {e["graph"] for e in told["engines"]} == build.engines.keys() == {"vision_encoder", "embed_tokens"}
    for name, engine in build.engines.items():
        path = folder / "trt/rtx" / engine.file
        assert (digest(path), path.stat().st_size) == (engine.sha256, engine.size)
        assert engine.sources == {file: digest(folder / file) for file in engine.sources}
        graph = manifest["graphs"][name]["file"]
        assert engine.sources.keys() == {graph, *weights_of(folder / graph)}
        assert engine.seconds > 0
        assert engine.peak_bytes > 10e6
    assert {p.name for p in (folder / "trt").iterdir()} == {"rtx"}
    assert {p.name for p in (folder / "trt/rtx").iterdir()} == {
        "build.json",
        "vision_encoder.engine",
        "embed_tokens.engine",
    }


def weights_of(path):
    graph = ir.load(path).graph
    tensors = [value.const_value for value in graph.initializers.values()]
    return {f"onnx/{t.location}" for t in tensors if isinstance(t, ir.ExternalTensor)}


def test_a_second_build_reuses_and_force_does_not(fico, own):
    before = engines(own)
    again = fico("build", own, *TWO)

    assert again.code == 0
    assert again.err.count("reused: nothing that it is made of has changed") == 2
    assert engines(own) == before
    forced = fico("build", own, *SMALL[:-2], "--force", "--json")
    assert [e["reused"] for e in forced.json["engines"]] == [False]
    after = engines(own)
    assert after["vision_encoder.engine"] == before["vision_encoder.engine"]
    assert after["embed_tokens.engine"] != before["embed_tokens.engine"]


def test_an_engine_that_is_damaged_or_of_another_graph_is_built_again(fico, own):
    path = own / "trt/rtx/embed_tokens.engine"
    path.write_bytes(path.read_bytes()[:-1])

    done = fico("build", own, *TWO, "--json")
    assert {e["graph"]: e["reused"] for e in done.json["engines"]} == {
        "vision_encoder": True,
        "embed_tokens": False,
    }
    edit_json(own / "trt/rtx/build.json", engines__embed_tokens__sources={"onnx/other.onnx": "0" * 64})
    done = fico("build", own, *TWO, "--json")
    assert {e["graph"]: e["reused"] for e in done.json["engines"]} == {
        "vision_encoder": True,
        "embed_tokens": False,
    }


def test_other_options_build_all_again_or_say_what_would_be_lost(fico, own):
    before = engines(own)
    fico("build", own, *SMALL).refuses("vision_encoder of", "compute_capabilities", "drop --graph", "--force")
    assert engines(own) == before

    done = fico("build", own, *TWO, "--low-memory", "--json")
    assert [e["reused"] for e in done.json["engines"]] == [False, False]
    options = Build.load(own, "rtx").options
    assert (options.workspace_bytes, options.auxiliary_streams, options.low_memory) == (512 * 2**20, 0, True)
    assert fico("build", own, *SMALL, "--force").code == 0
    assert Build.load(own, "rtx").engines.keys() == {"embed_tokens"}


def test_one_target_leaves_anothers_engines_alone(fico, own):
    other = own / "trt/trt-10.3"
    shutil.copytree(own / "trt/rtx", other)
    kept = {p.name: digest(p) for p in other.iterdir()}

    assert fico("build", own, *SMALL, "--force").code == 0
    assert {p.name: digest(p) for p in other.iterdir()} == kept


def test_scripts_and_what_they_made_stay_when_engines_are_built(fico, own):
    (own / "trt/rtx/profile.sh").write_text("#!/bin/sh\n")
    (own / "trt/rtx/trtexec").mkdir()
    (own / "trt/rtx/trtexec/times.json").write_text("[]")

    assert fico("build", own, *TWO, "--force").code == 0
    assert (own / "trt/rtx/trtexec/times.json").read_text() == "[]"
    assert (own / "trt/rtx/profile.sh").is_file()


@posix
def test_a_second_build_at_once_is_refused(fico, own):
    import fcntl

    before, other = engines(own), os.open(own, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    fico("build", own, *TWO, "--force").refuses("another fico build of", "wait")
    os.close(other)

    assert engines(own) == before
    assert fico("build", own, *SMALL, "--force").code == 0


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_stopped_leaves_the_old_engines_whole(own, number):
    before = engines(own)
    line = command_line("fico", "build", own, *TWO, "--opt-level", "4")
    with started(line, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (workers := list((own / "trt").glob(".rtx.partial-*"))) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert workers
        children = children_of(process.pid)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 130, said
    assert engines(own) == before
    assert {p.name for p in (own / "trt").iterdir()} == {"rtx"}
    deadline = time.monotonic() + 20  # one that had only just been started ends when its stdin does
    while running := [pid for pid in children if alive(pid)]:
        assert time.monotonic() < deadline, running
        time.sleep(0.05)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_graph_that_is_refused_is_told_in_tensorrts_words(fico, own):
    path = own / "onnx/embed_tokens.onnx"
    model = ir.load(path)
    x = ir.val("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
    node = ir.Node("", "Unique", [x], num_outputs=1, name="embed.unique")
    node.outputs[0].name = "y"
    ir.save(
        ir.Model(
            ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}), ir_version=model.ir_version
        ),
        path,
    )
    edit_json(own / "manifest.json", **{"files__onnx/embed_tokens.onnx": {
        "sha256": digest(path), "size": path.stat().st_size, "mtime_ns": None}})  # fmt: skip
    before = engines(own)

    fico("build", own, *TWO).refuses("rtx refuses embed_tokens", "'embed.unique'", "fico lint")
    line = command_line("fico", "build", own, *TWO)
    line[2] = "import sys; sys.modules['onnx'] = None; " + line[2]
    unlinted = in_own_process(line)
    unlinted.refuses("not linted", "the parser of tensorrt_rtx", "'embed.unique'", "Unique", code=1)
    assert engines(own) == before


def test_scripts_are_not_written_for_what_the_target_refuses(fico, make_bundle, tiny_checkpoint, tmp_path):
    modern = make_bundle(tiny_checkpoint, 16, precision="fp16", target="rtx", verify=False)
    own = copied(modern, tmp_path / "modern")

    fico("build", own, "--target", "trt-10.3", "--emit-trtexec").refuses(
        "trt-10.3 refuses decoder_model_merged",
        "RMSNormalization",
        "export again with --target trt-10.3",
        "fico lint",
    )
    assert not (own / "trt").exists()


def test_requests_that_cannot_be_met_say_what_can(fico, bundle, tmp_path):
    fico("build", tmp_path).refuses("is no bundle")
    fico("build", bundle).refuses("no engines for target portable", "--target one of", "trt-10.3")
    fico("build", bundle, "--target", "rtxx").refuses("did you mean 'rtx'")
    fico("build", bundle, *RTX).refuses("has a cache that grows", "--graph vision_encoder")
    fico("build", bundle, *RTX, "--graph", "vision").refuses("did you mean 'vision_encoder'")
    vision = (*RTX, "--graph", "vision_encoder")
    fico("build", bundle, *vision, "--compute-capability", "8.7").refuses("8.7", "Jetson")
    fico("build", bundle, *vision, "--profiles", "3").refuses("--profiles 1, or 2")
    fico("build", bundle, *vision, "--opt-level", "6").refuses("0 to 5")
    fico("build", bundle, *vision, "--workspace", "much").refuses("--workspace 2GB")
    fico("build", bundle, *vision, "--aux-streams", "-1").refuses("--aux-streams")
    fico("build", bundle, *vision, "--version-compatible").refuses("TensorRT-RTX has no --version-compatible")
    fico("build", bundle, *vision, "--emit-trtexec").refuses("no trtexec for target rtx")
    fico("build", bundle, *vision, "--device", "orin-nano-8gb").refuses("8.7", "--target trt-10.3")
    ampere = ("--target", "trt-11", "--graph", "vision_encoder", "--emit-trtexec", "--hardware-compatibility")
    fico("build", bundle, *ampere, "ampere").refuses("'ampere'", "ampere_plus")
    assert not (bundle / "trt").exists()


def test_memory_and_disk_that_do_not_suffice_are_refused(fico, bundle, monkeypatch):
    wanted = ("build", bundle, *RTX, "--graph", "vision_encoder")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 1000, 0))
        fico(*wanted).refuses("the engines need", "free some space")
    monkeypatch.setattr(preflight, "available_bytes", lambda: 1000)
    monkeypatch.setattr(preflight.machine, "memory", lambda root: {})
    done = fico(*wanted)
    done.refuses("building vision_encoder takes about 0.7 GB", "add swap")
    assert "of memory and" in done.err  # the estimate comes first
    assert not (bundle / "trt").exists()


def test_scripts_need_no_tensorrt_and_the_device_says_for_which(own):
    line = command_line(
        "fico",
        "build",
        own,
        "--device",
        "orin-nano-8gb",
        "--graph",
        "vision_encoder",
        "--emit-trtexec",
        "--json",
    )
    line[2] = (
        "import sys; sys.modules['tensorrt_rtx'] = sys.modules['onnx'] = sys.modules['torch'] = None; "
        + line[2]
    )
    done = in_own_process(line)

    assert done.code == 0, done.err
    assert done.json["scripts"] == [str(own / "trt/trt-10.3" / name) for name in ("build.sh", "profile.sh")]
