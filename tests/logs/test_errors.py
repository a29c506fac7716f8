"""Logs that cannot be used are refused, with the line named and what to do about it."""

import json

import pytest
import samples
from samples import NODES

from fico_export.errors import LogError
from fico_export.logs.read import read_logs

LAYERS = dict.fromkeys(NODES.values(), 1.0)
TIMES, PROFILE = samples.times("10.3"), samples.profile("10.3", LAYERS)
INFO = samples.layer_info("10.3", {"a": [NODES["reducer"]]}, {"pixel_values": []})
PLAIN = samples.plain("10.3.0")
ORT = json.dumps(
    [{"cat": "Node", "ph": "X", "name": "a/MatMul_1_kernel_time", "ts": 1, "dur": 2, "args": {}}]
)


def without(text, field):
    """Of the second record."""
    lines = text.splitlines()
    record = json.loads(lines[2].lstrip(", "))
    del record[field]
    return "\n".join([*lines[:2], f", {json.dumps(record)}", *lines[3:]])


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "empty"),
        (" \n\n", 1, "empty"),
        ("hello\n", 1, "no log of trtexec"),
        ("[]", 1, "zero iterations"),
        ("[\n]\n", 1, "zero iterations"),
        ('[{"a": 1}]', 1, "no log that is known"),
        ("[ 3 ]", 1, "no log of trtexec"),
        ("{}", 1, "'Layers' is missing"),
        ('{"Layers": []}', 1, "no layers"),
        (TIMES[: len(TIMES) // 2], 3, "truncated"),
        (TIMES[: TIMES.index(", {")], 3, "truncated"),
        (TIMES.replace('"computeMs": 6.0', '"computeMs": NaN'), 3, "computeMs is nan"),
        (TIMES.replace('"computeMs": 6.0', '"computeMs": -nan'), 3, "-nan is no time"),
        (TIMES.replace('"computeMs": 6.0', '"computeMs": inf'), 3, "inf is no time"),
        (TIMES.replace('"computeMs": 6.0', '"computeMs": 6,0'), 3, "decimal commas"),
        (TIMES.replace('"computeMs": 6.0', '"computeMs": "6"'), 3, "computeMs is '6'"),
        (without(TIMES, "computeMs"), 3, "'computeMs' is missing"),
        (PROFILE[:-30], 6, "truncated"),
        (PROFILE.replace('"count" : 200', '"count" : 0'), 2, "zero iterations"),
        ('[\n  { "count" : 5 }\n]\n', 1, "no layer was profiled"),
        (without(PROFILE, "name"), 3, "'name' is missing"),
        (without(PROFILE, "averageMs"), 3, "'averageMs' is missing"),
        (PROFILE.replace('{ "count" : 200 }\n, ', ""), 2, "'count' is missing"),
        (PROFILE.replace('"averageMs" : 1.0', '"averageMs" : nan', 1), 3, "nan is no time"),
        (INFO[: len(INFO) // 2], INFO[: len(INFO) // 2].count("\n") + 1, "truncated"),
        (INFO.replace('"Name": "a"', '"Nome": "a"', 1), 3, "'Name' is missing"),
        (PLAIN.replace("min = 5.0 ms", "min = 5,0 ms"), 12, "decimal commas"),
        (PLAIN.replace("min = 5.0 ms", "min = nan ms"), 12, "nan is no time"),
        (PLAIN.replace("mean = 6.25 ms, median = 7.5 ms, ", "mean = 6.25 ms, "), 12, "'median' of GPU Compute Time is missing"),
        (samples.plain("8.6.1", runs=0), 5, "zero iterations"),
        (PLAIN[: PLAIN.index("[11/20/2026-10:47:59] [I] GPU Compute")], 11, "without a performance summary"),
        (PLAIN.replace("&&&& PASSED", "[11/20/2026-10:48:00] [E] out of memory\n&&&& FAILED"), 16, "out of memory"),
        (ORT, 1, "no run was profiled"),
        (ORT[:-20], 1, "truncated"),
    ],
)  # fmt: skip
def test_a_log_that_cannot_be_used_names_the_line(tmp_path, text, line, words):
    path = tmp_path / "log"
    path.write_text(text)

    with pytest.raises(LogError) as error:
        read_logs([path])
    assert f"{path}, line {line}: " in error.value.what
    assert words in error.value.what
    assert error.value.fix


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LogError, match="cannot read"):
        read_logs([tmp_path / "gone"])


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint, make_bundle):
    return make_bundle(tiny_checkpoint, 16, method="divprune", verify=False)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (samples.layer_info("10.3", {"a": []}, {"images": []}), None, "'images' is in no graph"),
        (samples.layer_info("11.1", {"a": []}, {"image_features": [1, 64, 64]}), None, "[1, 64, 64]"),
        (samples.profile("10.3", {"language_model.layers.31.mlp/Mul_9": 1.0}), 3, "the decoder 2 layers"),
        (
            samples.plain("10.3.0", table={"language_model.layers.7.mlp/Mul_9": 1.0}),
            None,
            "the decoder 2 layers",
        ),
    ],
)
def test_a_log_of_another_engine_is_refused(tmp_path, bundle, text, line, words):
    path = tmp_path / "log"
    path.write_text(text)

    with pytest.raises(LogError, match="another engine") as error:
        read_logs([path], bundle)
    assert words in error.value.what
    assert f", line {line or ''}" in error.value.what


def test_a_log_of_the_bundles_own_engine_is_taken(tmp_path, bundle):
    tensors = {"pixel_values": [1, 3, 112, 112], "image_features": [1, 16, 64]}
    path = tmp_path / "log"
    for version in ("8.6", "11.1"):
        path.write_text(samples.layer_info(version, {"a": [NODES["reducer"]]}, tensors))
        assert read_logs([path], bundle).engines
