"""Which library builds, for which GPUs, and whether there is room: libraries and GPUs that are not there are stood in for."""

import ctypes
import shutil

import pytest
from build.bundles import write_manifest

from fico_export.build import jobs, library, preflight
from fico_export.build.phases import Phases
from fico_export.devices import catalog, gpu, memory, targets
from fico_export.errors import ConfigError, DiskError

ORIN = gpu.Gpu("Orin", "8.7", "CUDA 12.6")
DEVICES = catalog.load()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """machine(gpu, tensorrt="10.3.0"): that GPU, and packages that have a version and nothing else."""

    def make(found=None, **versions):
        for name, version in versions.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(f"__version__ = {version!r}")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(gpu, "find", lambda: found)

    return make


def find(target, device=None, capabilities=()):
    return library.find(targets.get(target), DEVICES[device] if device else None, list(capabilities))


@pytest.mark.parametrize(("target", "version"), [("trt-10.3", "10.3.0.30"), ("trt-11", "11.4.0.106")])
def test_tensorrt_builds_for_the_gpu_that_is_here(machine, target, version):
    machine(ORIN, tensorrt=version)
    found = find(target)

    assert (found.runtime, found.version) == ("tensorrt", version)
    assert (found.compute_capabilities, found.gpu, found.driver) == (["8.7"], "Orin", "CUDA 12.6")


def test_another_version_than_the_targets_is_refused(machine):
    machine(ORIN, tensorrt="10.16.2")

    with pytest.raises(
        ConfigError,
        match=r"trt-10\.3 is for TensorRT 10\.3.*JetPack 6\.1.*10\.16\.2.*\n.*--target trt-10\.16",
    ):
        find("trt-10.3")
    with pytest.raises(ConfigError, match=r"trt-11 is for"):
        find("trt-11")


def test_without_the_library_the_fix_installs_it(machine):
    machine(ORIN)

    with pytest.raises(ConfigError, match=r"No module named 'tensorrt'\n.*pip install"):
        find("trt-10.3")


def test_without_a_gpu_tensorrt_builds_nothing(machine):
    machine(None, tensorrt="10.3.0")

    with pytest.raises(ConfigError, match=r"has none.*\n.*--emit-trtexec.*--target rtx"):
        find("trt-10.3")


def test_another_gpu_than_the_devices_is_refused(machine):
    machine(gpu.Gpu("RTX", "8.6", "580.1"), tensorrt="10.3.0")

    with pytest.raises(ConfigError, match=r"orin-nano-8gb has compute capability 8\.7.*8\.6"):
        find("trt-10.3", "orin-nano-8gb")
    with pytest.raises(ConfigError, match="--compute-capability"):
        find("trt-10.3", capabilities=["8.7"])


def test_rtx_builds_for_what_is_asked_for_the_device_the_gpu_or_the_usual(machine):
    machine(None, tensorrt_rtx="1.7.1")

    assert find("rtx").compute_capabilities == ["8.6", "8.9", "12.0"]
    assert find("rtx", "rtx-4090").compute_capabilities == ["8.9"]
    assert find("rtx", "rtx-4090", ["12.0", "8.6", "12.0"]).compute_capabilities == ["12.0", "8.6"]


def test_rtx_builds_for_the_gpu_that_is_here_if_it_can(machine, monkeypatch):
    machine(gpu.Gpu("RTX", "8.9", "580.1"), tensorrt_rtx="1.8.0")
    assert find("rtx").compute_capabilities == ["8.9"]
    monkeypatch.setattr(gpu, "find", lambda: gpu.Gpu("H200", "9.0", "580.1"))
    assert find("rtx").compute_capabilities == ["8.6", "8.9", "12.0"]


@pytest.mark.parametrize(("capability", "word"), [("8.7", "Jetson"), ("9.0", "12.0"), ("sm86", "8.6")])
def test_capabilities_that_rtx_does_not_know_are_refused(machine, capability, word):
    machine(None, tensorrt_rtx="1.7.1")

    with pytest.raises(ConfigError, match=word):
        find("rtx", capabilities=[capability])


def test_an_older_rtx_is_refused(machine):
    machine(None, tensorrt_rtx="1.4.0")

    with pytest.raises(ConfigError, match=r"needs TensorRT-RTX 1\.7 or later; 1\.4\.0"):
        find("rtx")
    with pytest.raises(ConfigError, match=r"orin-nano-8gb has 8\.7"):
        find("rtx", "orin-nano-8gb")


class Driver:
    """libcuda, as far as it is asked."""

    def __init__(self, failing=""):
        self.failing = failing

    def __getattr__(self, name):
        def call(*given):
            if name == self.failing:
                return 100  # CUDA_ERROR_NO_DEVICE
            if name == "cuDeviceGetName":
                ctypes.memmove(given[0], b"NVIDIA Orin\0", 12)
            if name == "cuDeviceGetAttribute":
                given[0]._obj.value = {75: 8, 76: 7}[given[1]]
            if name == "cuDriverGetVersion":
                given[0]._obj.value = 12060
            return 0

        return call


def test_the_driver_says_which_gpu_there_is():
    found = gpu.find(Driver())

    assert (found.name, found.compute_capability) == ("NVIDIA Orin", "8.7")
    assert gpu.find(Driver(failing="cuInit")) is None
    assert gpu.find(Driver(failing="cuDeviceGet")) is None


@pytest.fixture
def plan(tmp_path):
    return jobs.plan(tmp_path / "b", write_manifest(tmp_path / "b"))


def test_memory_that_does_not_suffice_is_refused_with_the_graph_that_needs_most(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "available_bytes", lambda: 10**8)
    monkeypatch.setattr(preflight.machine, "memory", lambda root: {"SwapFree": 10**8})
    with pytest.raises(ConfigError, match=r"takes about 0\.7 GB.*0\.1 GB are free.*0\.1 GB of swap\n.*swap"):
        preflight.require_room(plan, "tensorrt_rtx", tmp_path)
    monkeypatch.setattr(preflight.machine, "memory", lambda root: {"SwapFree": 10**9})
    preflight.require_room(plan, "tensorrt_rtx", tmp_path)


def test_a_disk_that_does_not_suffice_is_refused(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 1000, 0))

    with pytest.raises(DiskError, match="the engines need"):
        preflight.require_room(plan, "tensorrt_rtx", tmp_path)


def test_what_is_free_is_asked_of_the_machine():
    assert preflight.available_bytes is memory.available_bytes


def test_phases_within_phases_make_one_part_that_never_falls():
    told = []
    phases = Phases(told.append)
    phases.start("whole", None, 4)
    phases.step("whole", 0)
    phases.start("inner", "whole", 2)
    phases.step("inner", 0)
    phases.start("innermost", "inner", 5)
    phases.step("innermost", 2)
    phases.finish("innermost")
    phases.finish("inner")
    phases.start("again", "whole", 2)  # a second phase in one step
    phases.step("again", 0)
    phases.step("whole", 1)
    phases.finish("whole")

    assert told == pytest.approx([1 / 4, 3 / 8, (1 + (1 + 3 / 5) / 2) / 4, 1 / 2, 1])


@pytest.mark.parametrize(
    ("asked", "own", "device", "chosen"),
    [
        (None, "rtx", None, "rtx"),
        (None, "rtx", "rtx-4090", "rtx"),
        (None, "rtx", "orin-nano-8gb", "trt-10.3"),
        (None, "trt-10.16", "orin-nano-8gb", "trt-10.16"),
        (None, "portable", "orin-nano-8gb", "trt-10.3"),
        ("trt-11", "rtx", "rtx-4090", "trt-11"),
    ],
)
def test_the_target_is_the_bundles_own_where_the_device_runs_it(asked, own, device, chosen):
    given = catalog.get(device) if device else None

    assert library.choose_target(asked, own, given).name == chosen
