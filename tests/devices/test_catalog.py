"""Devices and targets as data: what is said of them holds together, and what users write of their own is checked."""

import math

import pytest

from fico_export.devices import catalog, targets
from fico_export.errors import ConfigError

DEVICES = catalog.load()
JETSON_ORIN = {
    "orin-nano-4gb", "orin-nano-8gb", "orin-nx-8gb", "orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb", "agx-orin-industrial",
}  # fmt: skip
OWN = """
[my-board]
description = "A board of one's own"
compute_capability = "8.7"
memory_gb = 8
target = "trt-10.3"
precisions = ["fp16"]
[my-board.evidence]
compute_capability = "its maker"
memory_gb = "its maker"
"""


@pytest.fixture
def own(tmp_path):
    """own(text) writes a file of devices and gives its folder."""

    def write(text):
        (tmp_path / "own.toml").write_text(text)
        return tmp_path

    return write


def test_every_jetson_orin_and_thor_module_is_there():
    assert {*JETSON_ORIN, "t4000", "t5000"} <= DEVICES.keys()
    assert {DEVICES[name].compute_capability for name in JETSON_ORIN} == {"8.7"}
    assert {DEVICES[name].compute_capability for name in ("t4000", "t5000")} == {"11.0"}


@pytest.mark.parametrize("name", ["orin-nano-4gb", "orin-nano-8gb", "orin-nx-8gb", "orin-nx-16gb"])
def test_the_modules_that_have_a_super_mode_have_it_from_jetpack_6_2_on(name):
    supers = {mode.name: mode.jetpack for mode in DEVICES[name].modes if mode.jetpack}

    assert supers["MAXN_SUPER"] == "6.2"
    assert any(mode.watts in (25, 40) for mode in DEVICES[name].modes if mode.name in supers)


@pytest.mark.parametrize("name", [name for name, device in DEVICES.items() if device.modes])
def test_no_mode_goes_beyond_the_device_and_the_fastest_reaches_it(name):
    device = DEVICES[name]
    for field in ("gpu_mhz", "sms", "bandwidth_gb_s"):
        assert max(getattr(mode, field) for mode in device.modes) == getattr(device, field)
    bus_bytes = {4: 8, 8: 16}.get(device.memory_gb, 32 if device.name.startswith("agx") else 16)
    for mode in device.modes:  # two transfers a clock, over the whole bus
        assert math.isclose(mode.bandwidth_gb_s, mode.memory_mhz * 2 * bus_bytes / 1000, rel_tol=2e-3)


@pytest.mark.parametrize("name", sorted(JETSON_ORIN - {"agx-orin-industrial"}))
def test_an_orin_s_peaks_follow_from_its_tensor_cores(name):
    """Four tensor cores in each multiprocessor, 512 FP16 operations and twice as many INT8 ones a clock."""
    device = DEVICES[name]
    fp16 = device.sms * 4 * 512 * device.gpu_mhz * 1e6 / 1e12

    assert math.isclose(device.peak["fp16"], fp16, rel_tol=1e-2)
    assert math.isclose(device.peak["int8"], 2 * fp16, rel_tol=1e-2)


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_runs_what_it_implies(name):
    device = DEVICES[name]
    target, precision = catalog.resolve(device, None, None)

    assert target.name == device.target
    assert precision in target.precisions
    assert not target.compute_capabilities or device.compute_capability in target.compute_capabilities
    assert not device.jetpack or set(target.jetpack) & set(device.jetpack)


def test_what_is_asked_for_wins_over_what_the_device_implies():
    target, precision = catalog.resolve(DEVICES["orin-nano-8gb"], "portable", "fp32")

    assert (target.name, precision) == ("portable", "fp32")
    assert catalog.resolve(None, None, None) == (targets.get("portable"), "fp32")


def test_a_target_that_does_not_build_for_the_gpu_is_refused():
    with pytest.raises(ConfigError, match=r"orin-nano-8gb has 8\.7") as refused:
        catalog.resolve(DEVICES["orin-nano-8gb"], "rtx", None)

    assert "--target trt-10.3" in refused.value.fix


def test_a_precision_that_the_device_lacks_is_refused(own):
    board = catalog.get("my-board", own(OWN))
    with pytest.raises(ConfigError, match="my-board does not compute in fp32") as refused:
        catalog.resolve(board, None, "fp32")

    assert "fp16" in refused.value.fix


def test_weights_that_do_not_fit_are_refused():
    nano = DEVICES["orin-nano-8gb"]
    catalog.require_memory(nano, int(5.1e9))
    with pytest.raises(ConfigError, match=r"take 5\.3 GB, orin-nano-8gb has 5\.2 GB"):
        catalog.require_memory(nano, int(5.3e9))


def test_an_unknown_device_is_told_the_nearest():
    with pytest.raises(ConfigError) as refused:
        catalog.get("orin-nano-8g")

    assert "did you mean 'orin-nano-8gb'?" in refused.value.fix


def test_a_file_of_one_s_own_adds_replaces_and_changes(own):
    folder = own(
        OWN
        + '[orin-nano-8gb]\nlike = "orin-nano-8gb"\nusable_gb = 6.4\n'
        + '[orin-nano-8gb.evidence]\nusable_gb = "measured without a desktop"\n'
    )
    known = catalog.load(folder)

    assert known["my-board"].memory_gb == 8
    changed, before = known["orin-nano-8gb"], DEVICES["orin-nano-8gb"]
    assert (changed.usable_gb, changed.evidence["usable_gb"]) == (6.4, "measured without a desktop")
    assert changed.modes == before.modes
    assert known["t5000"] == DEVICES["t5000"]


def test_the_environment_names_the_folder_too(own, monkeypatch):
    monkeypatch.setenv("FICO_DEVICES", str(own(OWN)))

    assert catalog.get("my-board").target == "trt-10.3"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[my-board", ["own.toml is not TOML"]),
        (OWN.replace("memory_gb = 8", "memory_gb = -8"), ["own.toml: my-board: memory_gb", "given: -8"]),
        (OWN.replace('"8.7"', '"sm87"'), ["compute_capability", "sm87"]),
        (OWN.replace("memory_gb = 8", "memory = 8"), ["unknown key 'memory'", "memory_gb"]),
        (OWN.replace('target = "trt-10.3"\n', ""), ["'target' is missing"]),
        (OWN.replace("trt-10.3", "trt-10.4"), ["my-board: target: unknown target 'trt-10.4'", "trt-10."]),
        (OWN.replace('memory_gb = "its maker"', ""), ["evidence is missing for memory_gb"]),
        ("name = 1", ["'name' is not in the table of a device"]),
        ('[x]\nlike = "orin-nono-8gb"', ["own.toml: x: like: unknown device", "orin-nano-8gb"]),
        (
            '[x]\nlike = "orin-nano-8gb"\nusable_gb = 6.4',
            ["own.toml: x: evidence is missing for usable_gb"],
        ),
    ],
    ids=range(10),
)
def test_a_wrong_file_is_named_with_its_field(text, words, own):
    with pytest.raises(ConfigError) as refused:
        catalog.load(own(text))
    for word in words:
        assert word in str(refused.value)


def test_a_release_of_jetpack_has_the_target_of_its_line():
    found = {
        v: getattr(targets.of_jetpack(v), "name", None)
        for v in ("5.1.2", "6.0", "6.1", "6.2.2", "7.1", "7.2.1")
    }

    assert found == {
        "5.1.2": None,
        "6.0": None,
        "6.1": "trt-10.3",
        "6.2.2": "trt-10.3",
        "7.1": "trt-10.13",
        "7.2.1": "trt-10.16",
    }
