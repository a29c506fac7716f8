"""Logs that no tool writes: refused by line, in a moment."""

import json
import time

import pytest
from samples import NODES, layer_info, profile, times

from fico_export.errors import LogError
from fico_export.logs.read import read_logs
from fico_export.logs.records import Profile, Timed
from fico_export.logs.stages import attribute

NODE = NODES["reducer"]
SAID = "min = 1 ms, max = 2 ms, mean = 1.5 ms, median = 1.5 ms, percentile(90%) = 2 ms"
PLAIN = (
    "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --onnx=a\n[I] x\nTiming trace has 2 queries over 1 s\n"
    f"=== Profile (2 iterations ) ===\n   Time Avg Median % Layer\n  2.0  1.0  1.0  100.0  {NODE}\n"
    f"=== Performance summary ===\nThroughput: 100 qps\nGPU Compute Time: {SAID}\n"
)
INFO = json.dumps(json.loads(layer_info("10.3", {NODE: [NODE]}, {"pixel_values": [1, 3]})))
WRONG = {
    "digits in a time": times("10.3").replace("5.375", "9" * 5000, 1),
    "digits in a count": profile("10.3", {NODE: 1.0}).replace("200", "9" * 5000, 1),
    "a count of half a run": profile("10.3", {NODE: 1.0}, count=0.5),
    "deep lists": "[" * 100_000,
    "deep lists in a record": times("10.3").replace("5.375", "[" * 5000 + "]" * 5000, 1),
    "half a surrogate pair": profile("10.3", {NODE: 1.0}).replace(NODE, r"\ud800"),
    "a size that is a list": INFO.replace("[1, 64, 64]", "[[1], 64]", 1),
    "a size that is true": INFO.replace("[1, 64, 64]", "[true, 64]", 1),
    "profiles that are none": INFO.replace('"Name": "a"', '"ProfileInfo": "x", "Name": "a"', 1),
    "profiles of numbers": INFO.replace('"Name": "a"', '"ProfileInfo": [7], "Name": "a"', 1),
    "runs without end": PLAIN.replace("2 queries", "9" * 5000 + " queries"),
    "iterations without end": PLAIN.replace("(2 iterations", "(" + "9" * 5000 + " iterations"),
    "two points in a time": PLAIN.replace("  1.0  1.0  100.0", "  1.0.0  1.0  100.0"),
    "two points in a percentile": PLAIN.replace("percentile(90%)", "percentile(9.0.1%)"),
    "not utf-8": None,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_log_that_no_tool_writes_is_refused(tmp_path, name):
    path = tmp_path / "log"
    path.write_bytes(b"\x80\x81[" if WRONG[name] is None else WRONG[name].encode())
    with pytest.raises(LogError) as caught:
        read_logs([path])
    assert str(path) in caught.value.what
    assert len(caught.value.what) < 400 + len(str(path))
    assert caught.value.fix


def test_the_log_before_it_was_damaged_is_read(tmp_path):
    path = tmp_path / "log"
    for text in (PLAIN, INFO, times("10.3"), profile("10.3", {NODE: 1.0})):
        path.write_text(text)
        read_logs([path])


@pytest.mark.parametrize("digits", ["5", "99", "9" * 5000])
def test_a_version_that_is_none_is_told_as_it_is(tmp_path, digits):
    path = tmp_path / "log"
    path.write_text(PLAIN.replace("v100300", f"v{digits}"))
    version = read_logs([path]).summaries[0].version
    assert version
    assert digits.startswith(version)


@pytest.mark.parametrize(
    "name",
    [
        "{ForeignNode[" * 4000 + "..." * 4000,
        "-".join(["vision_tower.a"] * 5000),
        "language_model.layers." + "9" * 5000 + "/MatMul_1",
        "reduce." * 5000,
    ],
    ids=range(4),
)
def test_a_name_made_to_be_searched_for_ever_is_not(tmp_path, name):
    began = time.thread_time()
    attribute(Profile(tmp_path, "trtexec", 1, (Timed(f"{NODE}+{NODES['projector']}+{name}", 1.0),)))
    assert time.thread_time() - began < 20


def test_a_row_with_much_white_space_is_read_in_a_moment(tmp_path):
    path = tmp_path / "log"
    path.write_text(PLAIN.replace(NODE, f"{NODE}{' ' * 200_000}x"))
    began = time.thread_time()
    assert read_logs([path]).profiles[0].layers[0].name.endswith(" x")
    assert time.thread_time() - began < 20
