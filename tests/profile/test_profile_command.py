"""`fico profile`: what it measures, where it keeps it, and what it refuses. No test holds a time to more than sanity."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_tools import copied, edit_json

import fico_export
from fico_export.bundle.manifest import Manifest
from fico_export.errors import ConfigError, EngineError
from fico_export.profile import measure
from fico_export.profile.measure import ProfileRequest, profile
from fico_export.profile.picture import PROMPT, drawn
from fico_export.profile.record import Run
from fico_export.profile.subject import Subject
from fico_export.profile.worker import Job
from fico_export.runtime.answer import STAGES
from fico_export.runtime.backends.ort.sessions import open_session

QUICK = ("--iterations", 2, "--warm-up", 1, "--new-tokens", 3)


@pytest.fixture
def job(reduced, tmp_path):
    return Job(str(reduced), None, PROMPT, "ort-cpu", 1, str(tmp_path))


def test_two_bundles_are_measured_against_the_first(fico, whole, reduced, tmp_path):
    out = tmp_path / "run.json"
    outcome = fico("profile", whole, reduced, *QUICK, "--out", out, "--json")

    assert outcome.code == 0, outcome.err
    run = Run.load(out)
    assert outcome.json == run.model_dump(mode="json")
    assert [b.bundle for b in run.bundles] == [str(whole), str(reduced)]
    assert [(b.method, b.keep, b.visual_tokens) for b in run.bundles] == [
        ("none", 64, 64),
        ("ficoco-v", 16, 64),
    ]
    assert run.bundles[0].prompt_tokens - run.bundles[1].prompt_tokens == 48
    for i, bundle in enumerate(run.bundles):
        assert tuple(bundle.stages) == STAGES
        assert all(s.least > 0 for s in bundle.stages.values())
        for s in (*bundle.stages.values(), bundle.ttft, bundle.tpot, bundle.end_to_end):
            assert s.least <= s.p10 <= s.median <= s.p90 <= s.p99 <= s.most
            assert s.least <= s.mean <= s.most
        assert 0.3 < bundle.coverage <= 1.0001  # stages lie within the whole, whatever the machine does
        assert bundle.tokens_per_second == pytest.approx(1000 / bundle.tpot.median)
        assert bundle.host_peak_bytes >= bundle.host_answering_bytes > 20e6
        assert bundle.device_peak_bytes is None
        for name, medians in run.ratios.items():
            spread = bundle.stages.get(name) or getattr(bundle, name)
            first = run.bundles[0].stages.get(name) or getattr(run.bundles[0], name)
            assert medians[i] == pytest.approx(spread.median / first.median)
    assert run.ratios.keys() == {*STAGES, "ttft", "tpot", "end_to_end"}
    assert run.machine.versions["fico_export"] == fico_export.__version__


def test_the_vision_graph_is_split_into_its_parts(whole, reduced):
    run = profile([whole, reduced], ProfileRequest(iterations=1, warm_up=0, new_tokens=1))
    without, with_reducer = (b.vision_parts for b in run.bundles)

    for parts in (without, with_reducer):
        assert sum(parts.values()) == pytest.approx(1)
        assert parts["tower"] > parts["projector"] > 0
    assert without["reducer"] == 0
    assert with_reducer["reducer"] > 0
    assert all(b.reducer_ms is None for b in run.bundles)  # the parts are told
    assert all(b.tpot is None and b.tokens_per_second is None for b in run.bundles)
    assert not {"decode", "tpot"} & run.ratios.keys()


def test_a_bundle_against_itself_is_a_control_kept_beside_it(fico, reduced, tmp_path):
    bundle = copied(reduced, tmp_path / "a bundle")
    outcome = fico("profile", bundle, bundle, *QUICK)

    assert outcome.code == 0, outcome.err
    for word in ("first token (TTFT)", "per token (TPOT)", "reducer", "peak memory", "×", "→"):
        assert word in outcome.out
    run = Run.load(bundle / "profile.json")
    assert len(run.bundles) == 2
    assert 0 < run.ratios["end_to_end"][1] < 100
    assert not [path for path in bundle.iterdir() if "partial" in path.name]
    assert fico("inspect", bundle, "--check").code == 0  # nothing of what the manifest lists


def test_the_end_of_sequence_token_ends_no_answer(reduced, tmp_path):
    bundle = copied(reduced, tmp_path / "bundle")
    said = fico_export.load(bundle).generate(PROMPT, [drawn()], max_new_tokens=4).token_ids
    edit_json(bundle / "manifest.json", tokens__eos_ids=said)
    assert len(fico_export.load(bundle).generate(PROMPT, [drawn()], max_new_tokens=4).token_ids) == 1
    run = profile([bundle], ProfileRequest(iterations=1, warm_up=0, new_tokens=4))

    assert run.bundles[0].new_tokens == 4


def test_bundles_in_turn_are_never_loaded_together(monkeypatch, reduced):
    alive, most = set(), []

    class Counted(Subject):
        def __init__(self, job):
            super().__init__(job)
            alive.add(self)
            most.append(len(alive))

        def close(self):
            super().close()
            alive.discard(self)

    monkeypatch.setattr(measure, "Subject", Counted)
    run = profile([reduced, reduced], ProfileRequest(iterations=1, warm_up=0, new_tokens=1, in_turn=True))

    assert run.in_turn
    assert len(run.bundles) == 2
    assert most == [1, 1]
    assert not alive


def test_bundles_that_do_not_fit_together_are_refused_before_one_is_loaded(monkeypatch, reduced):
    manifest = Manifest.load(reduced)
    stored = sum(g.weight_bytes for n, g in manifest.graphs.items() if n != "embed_tokens")
    monkeypatch.setattr(measure, "available_bytes", lambda: int(1.5 * stored))

    with pytest.raises(ConfigError, match="--in-turn"):
        profile([reduced, reduced], ProfileRequest())
    monkeypatch.setattr(measure, "available_bytes", lambda: stored // 2)
    with pytest.raises(ConfigError, match="more memory") as refused:
        profile([reduced], ProfileRequest())
    assert "--in-turn" not in refused.value.fix


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--iterations", 0, "iterations is 0"),
        ("--iterations", -3, "iterations is -3"),
        ("--warm-up", -1, "warm_up is -1"),
        ("--new-tokens", 0, "new_tokens is 0"),
        ("--new-tokens", 4096, "context is full"),
        ("--threads", -1, "threads is -1"),
        ("--backend", "ort-cpux", "did you mean 'ort-cpu'?"),
        ("--prompt", "word " * 3000, "the model has 2048"),
        ("--out", "/", "a folder"),
        ("--out", "/no/such/folder/profile.json", "no folder"),
        ("--out", "profile.txt", "does not end in .json"),
    ],
)
def test_a_request_that_cannot_be_is_refused(fico, reduced, option, value, word):
    fico("profile", reduced, "--iterations", 1, "--warm-up", 0, option, value).refuses(word)


def test_no_file_of_a_bundle_is_written_over(fico, reduced):
    before = (reduced / "manifest.json").read_bytes()

    fico("profile", reduced, *QUICK, "--out", reduced / "manifest.json").refuses("also given to be read")
    fico("profile", reduced, *QUICK, "--out", reduced / "config.json").refuses("also given to be read")
    assert (reduced / "manifest.json").read_bytes() == before


def test_a_picture_that_is_broken_is_named(fico, reduced, tmp_path):
    (tmp_path / "half.png").write_bytes(drawn()[:2000])

    fico("profile", reduced, "--image", tmp_path / "half.png").refuses("half.png", "cut short")
    fico("profile", reduced, "--image", tmp_path / "gone.png").refuses("gone.png")


def test_a_picture_given_is_asked_about(reduced, photographs, tmp_path):
    photographs[0].save(tmp_path / "photo.png")
    run = profile(
        [reduced], ProfileRequest(picture=tmp_path / "photo.png", iterations=1, warm_up=0, new_tokens=1)
    )

    assert run.picture == str(tmp_path / "photo.png")


def test_an_image_in_memory_is_asked_about_under_a_short_name(reduced, photographs):
    file = io.BytesIO()
    photographs[0].resize((40, 30)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    named = {
        "the array given": np.asarray(photographs[0]),
        f"data:image/png;base64,{url[22:40]}… ({len(url):,} characters)": url,
    }
    for name, picture in named.items():
        run = profile([reduced], ProfileRequest(picture=picture, iterations=1, warm_up=0, new_tokens=1))
        assert run.picture == name


def test_a_bundle_that_cannot_be_run_is_named(fico, reduced, tmp_path):
    fico("profile", tmp_path / "none").refuses("no bundle", "none")
    fico("profile").refuses("BUNDLE")
    lacking = copied(reduced, tmp_path / "lacking")
    edit_json(lacking / "manifest.json", graphs__vision_encoder=...)
    fico("profile", reduced, lacking, *QUICK).refuses("no graph 'vision_encoder'")
    damaged = copied(reduced, tmp_path / "damaged")
    (damaged / "onnx" / "vision_encoder.onnx").write_bytes(b"no graph")
    fico("profile", reduced, damaged, *QUICK, "--json")
    refused = fico("profile", reduced, damaged, *QUICK, "--json").json
    assert "vision_encoder.onnx" in refused["error"]
    assert refused["exit"] == 2


def test_logs_are_shared_out_in_place_of_measuring(fico, reduced, whole, tmp_path):
    session = open_session(
        reduced / "onnx" / "vision_encoder.onnx", threads=1, profile_to=tmp_path / "vision"
    )
    size = Manifest.load(reduced).profile.size[0]
    session.run(None, {"pixel_values": np.zeros((1, 3, size, size), np.float32)})
    log = session.end_profiling()
    outcome = fico("profile", reduced, "--logs", log, "--json")

    (profile,) = outcome.json["profiles"]
    assert {"vision tower", "reducer", "projector"} <= profile["stages"].keys()
    assert sum(profile["stages"].values()) + profile["unattributed_ms"] == pytest.approx(profile["total_ms"])
    assert "not attributed" in fico("profile", "--logs", log).out
    assert not (reduced / "profile.json").exists()
    fico("profile", reduced, whole, "--logs", log).refuses("2 bundles")
    fico("profile", "--logs", log, "--out", tmp_path / "out.json").refuses("measures nothing")
    Path(log).write_text(Path(log).read_text()[:-40])
    fico("profile", "--logs", log).refuses("line", "truncated")


def test_layer_info_of_another_engine_is_said_to_be_of_no_use(fico, tmp_path):
    timed = [{"count": 1}, {"name": "kgen", "averageMs": 1.0}]
    for name, layer in (("own", "kgen"), ("other", "gemm")):
        info = {"Layers": [{"Name": layer, "Metadata": "[ONNX Layer: reduce.layer_2/TopK_9]"}]}
        (tmp_path / name).write_text(json.dumps(info))
    (tmp_path / "profile").write_text(json.dumps(timed))

    def said(name):
        return fico("profile", "--logs", tmp_path / "profile", "--logs", tmp_path / name).out

    assert re.search(r"reducer +1\.000 ms +100\.0%", said("own"))
    assert "no profile" not in said("own")
    assert re.search(r"not attributed +1\.000 ms +100\.0%", said("other"))
    assert "1 layers, those of no profile" in said("other")
    assert "shares out nothing" in fico("profile", "--logs", tmp_path / "own").out


def test_a_process_that_is_killed_is_an_error_that_says_so(job):
    with Subject(job) as subject:
        assert subject.answer(1)["new_tokens"] == 1
        os.kill(subject._process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="signal 9") as error:
            subject.answer(1)
    assert "memory" in error.value.fix


def test_no_process_outlives_its_pipe(job):
    subject = Subject(job)
    subject._process.stdin.close()

    assert subject._process.wait(timeout=20) == 0
    subject._process.stdout.close()


def test_the_process_that_measures_needs_no_torch():
    heavy = "{'torch', 'transformers', 'onnx', 'onnxscript', 'onnx_ir'}"
    code = f"import sys, fico_export.profile.measure, fico_export.profile.worker; assert not {heavy} & sys.modules.keys()"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_profile_that_is_none_is_named(tmp_path, reduced):
    path = tmp_path / "profile.json"
    for text in ("", "[]", '{"schema_version": 99}', '{"schema_version": 1}', '{"schema_version": "x"}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"profile\.json"):
            Run.load(path)
