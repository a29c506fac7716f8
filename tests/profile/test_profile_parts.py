"""What `fico profile` is made of: spreads, ratios, memory, the machine, and nodes to parts of the vision graph."""

import json
import subprocess
import sys

import pytest
from machines import DESKTOP, NVPMODEL, ORIN_NANO, build

from fico_export.devices import machine as facts
from fico_export.profile import machine, summary
from fico_export.profile.memory import DevicePeak, cuda_free_bytes
from fico_export.profile.vision import shares

TEGRA = ORIN_NANO | {
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy10/scaling_cur_freq": "<unknown>\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "918000000\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/class/devfreq/broken/cur_freq": "",
}


def test_a_spread_is_that_of_its_values():
    found = summary.spread([float(v) for v in (11, 3, 1, 2, 10, 4, 6, 5, 7, 9, 8)])

    assert (found.least, found.p10, found.median, found.p90, found.most) == (1, 2, 6, 10, 11)
    assert found.p99 == pytest.approx(10.9)
    assert found.mean == 6
    assert summary.spread([2.5]).p99 == 2.5


def answer(ms, tokens=3):
    stages = {"preprocess": ms, "vision": 2 * ms, "embed": ms, "prefill": 4 * ms, "decode": 2 * ms}
    times = {"stages_ms": stages, "ttft_ms": 8 * ms, "tpot_ms": ms, "wall_ms": 12.5 * ms}
    return times | {"prompt_tokens": 30, "new_tokens": tokens}


FINAL = {"backend": "ort-cuda", "host_peak_bytes": 5, "host_answering_bytes": 4, "device_peak_bytes": 7}


@pytest.fixture
def records(make_bundle, tiny_checkpoint):
    """Two bundles whose backend tells no parts, the second in half the time."""
    from fico_export.bundle.manifest import Manifest

    manifests = [
        Manifest.load(make_bundle(tiny_checkpoint, verify=False)),
        Manifest.load(make_bundle(tiny_checkpoint, 16)),
    ]
    final = FINAL | {"vision_parts": {}}
    measured = [
        summary.measured("a", manifests[0], [answer(2.0), answer(4.0), answer(6.0)], final),
        summary.measured("b", manifests[1], [answer(1.0), answer(2.0), answer(9.0)], final),
    ]
    return manifests, measured


def test_ratios_are_of_medians_to_the_first(records):
    _, measured = records
    found = summary.ratios(measured)

    assert found == {name: [1, 0.5] for name in (*answer(1.0)["stages_ms"], "ttft", "tpot", "end_to_end")}
    assert [b.coverage for b in measured] == pytest.approx([0.8, 0.8])
    assert measured[0].tokens_per_second == 250


def test_a_stage_that_takes_no_time_has_no_ratio(records):
    _, measured = records
    still = summary.spread([0.0])
    measured = [m.model_copy(update={"stages": m.stages | {"decode": still}}) for m in measured]

    assert "decode" not in summary.ratios(measured)


def test_what_the_reducer_costs_is_the_difference_where_nobody_tells(records):
    manifests, measured = records
    base, reduced = summary.with_reducer_ms(measured, manifests)
    assert base.reducer_ms is None
    assert reduced.reducer_ms == pytest.approx(4.0 - 8.0)

    told = measured[1].model_copy(update={"vision_parts": {"tower": 1.0}})
    assert summary.with_reducer_ms([measured[0], told], manifests)[1].reducer_ms is None
    other = [manifests[0].model_copy(update={"precision": "fp16"}), manifests[1]]
    assert summary.with_reducer_ms(measured, other)[1].reducer_ms is None


def events(*taken):
    """A profile of ONNX Runtime: one run of these nodes, by name and microseconds."""
    made = [{"cat": "Session", "name": "model_run", "dur": 9, "ts": 0}]
    for at, (name, took) in enumerate(taken):
        made.append(
            {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": took, "args": {"op_name": "Add"}}
        )
    return json.dumps(made)


def test_the_vision_graphs_time_is_shared_out_by_the_names_of_its_nodes(tmp_path):
    path = tmp_path / "vision.json"
    path.write_text(
        events(
            ("vision_tower.embeddings.patch_embedding/Conv_1", 1),
            ("gemm_output_reshape_token_5", 2),
            ("vision_tower.encoder.layers.1.mlp/MatMul_3", 4),
            ("graph/Add_77", 8),
            ("reduce.layer_2/TopK_9", 16),
            ("multi_modal_projector.linear_1/Gemm_8", 32),
        )
    )
    found = shares(path)

    assert sum(found.values()) == pytest.approx(1)
    assert found["reducer"] == pytest.approx(16 / 63)
    assert found["projector"] == pytest.approx(32 / 63)
    assert found["tower"] + found["other"] == pytest.approx(15 / 63)
    assert found["tower"] >= 5 / 63
    assert found["other"] >= 8 / 63


def test_the_peak_can_be_begun_anew():
    code = (
        "from fico_export.profile.memory import forget_host_peak, host_peak_bytes\n"
        "block = bytearray(200 << 20); del block\n"
        "high = host_peak_bytes(); forgot = forget_host_peak(); print(forgot, high, host_peak_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    forgot, high, low = done.stdout.split()
    if forgot != "True":
        pytest.skip("this system does not forget a peak")

    assert int(high) > 200 << 20
    assert int(low) < int(high) - (150 << 20)


def test_gpu_memory_is_what_is_taken_while_at_work():
    free = iter([100, 60, 30, 20, 20, 35])  # between two times at work, others take 30
    peak = DevicePeak(lambda: next(free))
    for _ in range(3):
        with peak.at_work():
            pass

    assert peak.bytes == 40 + 10
    nobody = DevicePeak(None)
    with nobody.at_work():
        pass
    assert nobody.bytes is None


@pytest.mark.gpu
def test_the_driver_tells_what_is_free():
    ask = cuda_free_bytes()

    assert ask is not None
    assert ask() > 0


def test_clocks_and_power_mode_of_a_jetson(tmp_path):
    root = build(tmp_path, TEGRA)

    assert facts.clocks(root) == {"cpu0": 1510.4, "cpu4": 729.6, "15340000.vic": 115.2, "17000000.gpu": 918.0}
    assert machine.power_mode(root, {}) == "25W"
    assert "NAME=25W" in NVPMODEL
    seen = machine.describe(root)
    assert seen.name.startswith("NVIDIA Jetson Orin Nano")
    (root / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("306000000\n")
    assert machine.ended(seen, root).clocks_mhz["17000000.gpu"] == (918.0, 306.0)


def test_clocks_and_power_of_a_desktop(tmp_path):
    root = build(tmp_path, DESKTOP | {"proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD Ryzen 9 7950X\n"})
    smi = machine.read_smi("NVIDIA GeForce RTX 4090, 580.65.06, 2520, 10501, 450.00\nsecond, 1, 2, 3, 4\n")

    assert facts.cpu(root) == "AMD Ryzen 9 7950X"
    assert machine.clocks(root, smi) == {"gpu sm": 2520, "gpu mem": 10501}
    assert machine.power_mode(root, smi) == "GPU 450 W"
    governor = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("powersave\n")
    assert machine.power_mode(root, smi) == "CPU powersave, GPU 450 W"
    assert machine.power_mode(tmp_path / "nothing", {}) is None


def test_what_nvidia_smi_does_not_know_is_left_out():
    assert machine.read_smi("Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A]\n") == {
        "name": "Orin (nvgpu)",
        "driver_version": "540.4.0",
    }
    assert machine.read_smi("") == {}
    assert machine.read_smi("NVIDIA-SMI has failed because it couldn't communicate") == {}
