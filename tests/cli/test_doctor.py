"""`fico doctor` on machines that are not this one."""

import pytest
from machines import DESKTOP, ORIN_NANO, THOR, build

from fico_export.cli.doctor import look
from fico_export.devices import machine


@pytest.fixture
def findings(tmp_path):
    """findings(files, installed) → what of it is said, by name."""

    def find(files, installed=None):
        found = look(build(tmp_path, files), installed or {})
        assert all(f.fix for f in found if f.status != "ok")
        return {f.what: f for f in found}

    return find


def test_a_jetson_with_jetpack_6_2(findings):
    found = findings(ORIN_NANO)

    assert found["device"].found.endswith("Developer Kit Super: --device orin-nano-8gb")
    assert found["JetPack"].found == "6.2 (Jetson Linux 36.4.3): --target trt-10.3"
    assert found["CUDA"].found == "toolkit 12.6.11"
    assert found["TensorRT"].found == "10.3.0.30"
    assert "TensorRT-RTX" not in found
    assert found["swap"].found == "0 B on disk, 3.99 GB of zram"
    assert "fallocate" in found["swap"].fix
    assert "zram" in found["swap"].fix
    assert found["CMA"].found == "97.0 MB of 268.4 MB of contiguous memory free"
    assert "cma=950M" in found["CMA"].fix
    assert found["memory"].found.startswith("3.32 GB of 7.99 GB available")
    assert found["memory"].status == "note"


def test_a_power_mode_below_the_fastest_is_told_how_to_leave_it(findings):
    mode = findings(ORIN_NANO)["power mode"]

    assert (mode.found, mode.status) == ("25W", "note")
    assert "sudo nvpmodel -m 2 (MAXN_SUPER)" in mode.fix


def test_the_fastest_mode_is_let_be(findings):
    mode = findings(ORIN_NANO | {"var/lib/nvpmodel/status": "pmode:0002 fmode:cool"})["power mode"]

    assert mode.status == "ok"
    assert mode.found.startswith("MAXN_SUPER")


def test_a_jetson_whose_power_mode_was_never_set(findings):
    mode = findings({k: v for k, v in ORIN_NANO.items() if "nvpmodel" not in k})["power mode"]

    assert (mode.found, mode.status) == ("unknown", "note")


def test_a_thor_needs_no_swap(findings):
    found = findings(THOR)

    assert found["device"].found == "NVIDIA Jetson AGX Thor Developer Kit: --device t5000"
    assert found["JetPack"].found == "7.1 (Jetson Linux 38.4.0): --target trt-10.13"
    assert {found[name].status for name in ("swap", "CMA", "memory", "power mode")} == {"ok"}
    assert (found["TensorRT"].status, found["CUDA"].status) == ("note", "note")
    assert "nvidia-jetpack" in found["TensorRT"].fix


def test_a_jetson_with_a_release_that_has_no_target(findings):
    old = {
        "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref",
        "var/lib/dpkg/status": "",
    }
    jetpack = findings(ORIN_NANO | old)["JetPack"]

    assert (jetpack.found, jetpack.status) == ("5.1.2 (Jetson Linux 35.4.1): no target", "problem")
    assert "flash JetPack 6.2" in jetpack.fix


def test_a_jetson_that_is_not_in_the_catalog(findings):
    device = findings(ORIN_NANO | {"proc/device-tree/compatible": "nvidia,p3509-0000+p3668-0001\0"})["device"]

    assert device.status == "note"
    assert "FICO_DEVICES" in device.fix


def test_a_desktop(findings):
    packages = {"tensorrt": "11.4.0.106", "tensorrt_rtx_cu13": "1.7.1.116", "cuda_bindings": "13.5.0"}
    found = findings(DESKTOP, packages)

    assert found["driver"].found == "NVIDIA 580.65.06"
    assert found["CUDA"].found == "toolkit 13.0.1"
    assert found["TensorRT"].found == "11.4.0.106"
    assert found["TensorRT-RTX"].found == "1.7.1.116"
    assert found["cuda-bindings"].found == "13.5.0"
    assert found["swap"].found == "8.59 GB on disk, 0 B of zram"
    assert not {"JetPack", "power mode", "CMA", "device"} & found.keys()
    assert all(f.status == "ok" for f in found.values())


def test_a_machine_that_can_build_engines_and_not_run_them(findings):
    bindings = findings(DESKTOP, {"tensorrt": "11.4.0.106"})["cuda-bindings"]

    assert bindings.status == "note"
    assert "'cuda-bindings<13'" in bindings.fix


def test_a_machine_with_nothing(findings):
    found = findings({})

    assert {name: f.status for name, f in found.items()} == dict.fromkeys(
        ("driver", "CUDA", "TensorRT", "TensorRT-RTX"), "note"
    )


@pytest.mark.parametrize(
    ("release", "revision", "jetpack"),
    [("36", "3.0", "6.0"), ("36", "4.0", "6.1"), ("36", "4.7", "6.2.1"), ("36", "5.0", "6.2.2"), ("38", "2.1", "7.0"),
     ("39", "2.0", "7.2"), ("39", "2.1", "7.2.1"), ("35", "3.1", "5.1.1"), ("32", "7.1", None)],
)  # fmt: skip
def test_jetpack_follows_from_jetson_linux(release, revision, jetpack, tmp_path):
    text = f"# R{release} (release), REVISION: {revision}, GCID: 1, BOARD: generic"

    assert machine.jetpack(build(tmp_path, {"etc/nv_tegra_release": text})) == jetpack
