"""Every format in every version is read for what it says."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import samples
from samples import NODES

from fico_export.bundle.manifest import Manifest
from fico_export.logs.read import read_logs
from fico_export.logs.records import statistics
from fico_export.logs.stages import attribute, stage_of

FUSED = f"{NODES['vision tower']} + vision_tower.encoder.layers.3.self_attn.q_proj/Add_99"


@pytest.fixture
def write(tmp_path):
    def write(text, name="log", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


@pytest.mark.parametrize("version", ["8.2", "8.6", "10.3", "11.1"])
def test_times(write, version):
    (times,) = read_logs([write(samples.times(version))]).times

    assert times.compute_ms == (5.0, 6.0, 7.0)
    assert times.enqueue_ms == (0.5, 0.5, 0.5)
    assert times.latency_ms == (5.375, 6.375, 7.375)
    assert statistics(times.compute_ms).median == 6.0


def test_percentiles_are_by_nearest_rank():
    found = statistics([float(i) for i in range(1, 201)])

    assert (found.least, found.most, found.mean, found.median) == (1, 200, 100.5, 100.5)
    assert found.percentiles == {90: 180, 95: 190, 99: 198}


@pytest.mark.parametrize("version", ["8.2", "8.6", "10.3", "11.1"])
def test_a_profile_is_shared_out_to_stages(write, version):
    layers = {name: float(i + 1) for i, name in enumerate(NODES.values())} | {
        FUSED: 8.0,
        "__myl_MulAdd_myl0_7": 2.0,
    }
    (profile,) = read_logs([write(samples.profile(version, layers))]).profiles
    found = attribute(profile)

    assert profile.runs == 200
    assert profile.layers[0].median_ms == (None if version == "8.2" else 1.0)
    assert found.stages == {
        "patch embedding": 1.0,
        "vision tower": 2.0 + 8.0,
        "reducer": 3.0,
        "projector": 4.0,
    }
    assert found.unattributed_ms == 2.0
    assert found.unattributed_share == pytest.approx(2 / 20)
    assert found.total_ms == profile.total_ms


@pytest.mark.parametrize("version", ["8.6", "10.3", "11.1"])
def test_layer_info_names_the_nodes_that_a_profile_does_not(write, version):
    layers = {
        "__myl_a": [NODES["vision tower"]],
        "__myl_b": [NODES["reducer"], NODES["reducer"], NODES["projector"]],
        "__myl_c": [],
    }
    info = write(samples.layer_info(version, layers, {"pixel_values": [1, 3, 112, 112]}), "info")
    logs = read_logs(
        [info, write(samples.profile(version, {"__myl_a": 5.0, "__myl_b": 3.0, "__myl_c": 2.0}), "profile")]
    )
    (engine,), (profile,) = logs.engines, logs.profiles

    assert engine.detailed
    assert engine.layers[1].nodes == (NODES["reducer"], NODES["reducer"], NODES["projector"])
    assert engine.layers[0].tactic == "_gemm_mha_v2"
    tensor = engine.layers[0].inputs[0]
    assert tensor.shape == (1, 64, 64)
    assert tensor.dtype == ("Half" if version == "11.1" else "Row major linear FP16 format")
    assert [t.name for t in engine.tensors] == ["pixel_values"]
    found = attribute(profile, engine)
    assert found.stages == pytest.approx({"vision tower": 5.0, "reducer": 2.0, "projector": 1.0})
    assert (found.mixed_ms, found.unattributed_ms) == (3.0, 2.0)
    assert attribute(profile).unattributed_ms == 10.0


def test_layer_info_without_details_is_names(write):
    (engine,) = read_logs([write(samples.names_only(NODES.values(), ["pixel_values"]))]).engines

    assert [layer.name for layer in engine.layers] == list(NODES.values())
    assert not engine.detailed


def test_a_range_of_nodes_counts_where_both_ends_are_of_one_stage(write):
    tower, other = NODES["vision tower"], NODES["projector"]
    layers = {
        f"{{ForeignNode[{tower}...vision_tower.encoder.layers.9.mlp.fc2/Add_200]}}": 5.0,
        f"{{ForeignNode[{tower}...{other}]}}": 3.0,
    }
    (profile,) = read_logs([write(samples.profile("10.3", layers))]).profiles

    assert attribute(profile).stages == {"vision tower": 5.0}
    assert attribute(profile).unattributed_ms == 3.0


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.1.0"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_plain_log(write, version, encoding):
    table = {NODES["reducer"]: 0.5, FUSED: 2.0}
    logs = read_logs([write(samples.plain(version, table=table), encoding=encoding)])
    (summary,) = logs.summaries

    assert summary.version == version
    assert "--loadEngine=vision_encoder.engine" in summary.command
    assert ("--useCudaGraph" in summary.command) is (version != "11.1.0")
    assert (summary.gpu, summary.runs, summary.queries_per_second) == ("Orin", 200, 130.298)
    assert (summary.compute_ms.least, summary.compute_ms.median, summary.compute_ms.percentiles[99]) == (
        5.0,
        7.5,
        9.5,
    )
    assert summary.latency_ms.most == 11.0
    assert summary.h2d_ms.mean == 0.3125
    assert logs.profiles == (summary.profile,)
    assert attribute(summary.profile).stages == {"reducer": 0.5, "vision tower": 2.0}


def test_decoder_nodes_have_their_stages():
    assert {
        node: stage_of(node)
        for node in (
            "language_model.layers.0.self_attn.q_proj/MatMul_13", "language_model.layers.31.input_layernorm/Mul_3",
            "language_model.layers.0.mlp/Mul_70", "language_model.layers.0/Add_61", "language_model.norm/Mul_1",
            "lm_head/MatMul_2", "language_model.embed_tokens/Gather_0", "graph/Cos_5", "gemm_output_reshape_token_17",
        )
    } == {
        "language_model.layers.0.self_attn.q_proj/MatMul_13": "decoder attention",
        "language_model.layers.31.input_layernorm/Mul_3": "decoder attention",
        "language_model.layers.0.mlp/Mul_70": "decoder MLP",
        "language_model.layers.0/Add_61": "decoder residual",
        "language_model.norm/Mul_1": "decoder head",
        "lm_head/MatMul_2": "decoder head",
        "language_model.embed_tokens/Gather_0": "token embedding",
        "graph/Cos_5": "rest of the graph",
        "gemm_output_reshape_token_17": None,
    }  # fmt: skip


def test_a_real_profile_of_onnx_runtime(tiny_checkpoint, make_bundle, tmp_path):
    """With a Scan, whose body's own events must not count twice."""
    bundle = make_bundle(tiny_checkpoint, 16, method="divprune", verify=False)
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    options.log_severity_level = 3
    session = ort.InferenceSession(bundle / Manifest.load(bundle).graph("vision_encoder").file, options)
    for _ in range(3):
        session.run(None, {"pixel_values": np.zeros((1, 3, 112, 112), np.float32)})
    path = session.end_profiling()
    (profile,) = read_logs([tmp_path / path], bundle).profiles
    found = attribute(profile)

    assert profile.runs == 3
    assert {"vision tower", "reducer", "projector", "patch embedding"} <= found.stages.keys()
    # Of equal times: a busy machine may stretch the one layer that has no stage.
    even = replace(profile, layers=tuple(replace(layer, mean_ms=1.0) for layer in profile.layers))
    assert attribute(even).unattributed_share < 0.1  # what the optimiser put where two stages meet
    runs = [e["dur"] / 1e3 for e in json.loads((tmp_path / path).read_text()) if e["name"] == "model_run"]
    assert 0 < profile.total_ms <= sum(runs) / 3
    scans = [layer for layer in profile.layers if layer.operator == "Scan"]
    assert len(scans) == 1
    assert stage_of(scans[0].name) == "reducer"
