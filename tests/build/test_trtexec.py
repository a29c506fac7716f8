"""The scripts for trtexec: every flag is one that the version has, numbers of 10 and 11 compare, and a shell takes them."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from build.bundles import ROWS, write_manifest

from fico_export.build import jobs, trtexec
from fico_export.bundle.engines import Options
from fico_export.devices import targets
from fico_export.errors import ConfigError

# NVIDIA/TensorRT, samples/common/sampleOptions.cpp of each version: what all three have, and what each has beside it.
COMMON = [
    "onnx",
    "saveEngine",
    "loadEngine",
    "memPoolSize",
    "timingCacheFile",
    "builderOptimizationLevel",
    "maxAuxStreams",
    "tacticSources",
    "profilingVerbosity",
    "sparsity",
    "noTF32",
    "refit",
    "exportTimes",
    "exportProfile",
    "exportLayerInfo",
    "exportOutput",
    "dumpProfile",
    "dumpLayerInfo",
    "loadInputs",
    "iterations",
    "duration",
    "warmUp",
    "percentile",
    "avgRuns",
    "skipInference",
    "profile",
    "useProfile",
    "dumpOptimizationProfile",
    "allowWeightStreaming",
    "weightStreamingBudget",
    "stripWeights",
    "stripAllWeights",
    "getPlanVersionOnly",
    "markDebug",
    "saveDebugTensors",
    "runtimePlatform",
    "errorOnTimingCacheMiss",
    "allocationStrategy",
    "versionCompatible",
    "excludeLeanRuntime",
    "leanDLLPath",
    "hardwareCompatibilityLevel",
    "minShapes",
    "optShapes",
    "maxShapes",
    "shapes",
]
OF_10 = [
    "stronglyTyped",
    "separateProfileRun",
    "useCudaGraph",
    "useSpinWait",
    "noDataTransfers",
    "calibProfile",
]
LATER = [
    "maxTactics",
    "tilingOptimizationLevel",
    "l2LimitForTiling",
    "refitFromOnnx",
    "decomposableAttentions",
    "markUnfusedTensorsAsDebugTensors",
    "saveAllDebugTensors",
    "asyncFileReader",
    "adjustForDLA",
    "reportCapabilityDLA",
    "remoteAutoTuningConfig",
    "cpuOnly",
]
OF_11 = ["noCudaGraph", "noSpinWait", "includeDataTransfers", "loadRefOutputs", "accuracyAlgorithm"]
PUBLISHED = {
    "10.3": {*COMMON, *OF_10},
    "10.13": {*COMMON, *OF_10},  # not published here: no more than 10.3 has
    "10.16": {*COMMON, *OF_10, *LATER},
    "11.0": {*COMMON, *LATER, *OF_11},  # flags that 11 takes and ignores are left out
    "11.1": {*COMMON, *LATER, *OF_11},
}
# Removed in 11, and against types that are in the graph before it.
PRECISION = {
    "fp16",
    "bf16",
    "int8",
    "fp8",
    "int4",
    "best",
    "calib",
    "layerPrecisions",
    "precisionConstraints",
}
COMPARABLE = {"useCudaGraph", "useSpinWait", "noDataTransfers", "separateProfileRun"}
EVERYTHING = Options(
    optimization_level=5, workspace_bytes=2**30, auxiliary_streams=0, hardware_compatibility="ampere_plus",
    version_compatible=True, low_memory=True,
)  # fmt: skip
TARGETS = [name for name in targets.names() if name.startswith("trt-")]


@pytest.fixture
def plan(tmp_path):
    folder = tmp_path / "a bundle's folder"
    return jobs.plan(folder, write_manifest(folder), profiles=2)


def flags(script):
    return set(re.findall(r"^  --(\w+)", script, re.MULTILINE))


@pytest.mark.parametrize("version", PUBLISHED)
@pytest.mark.parametrize("options", [Options(), EVERYTHING], ids=["default", "everything"])
def test_every_flag_is_published(version, options, plan):
    build, profile = trtexec.build_script(version, plan, options), trtexec.profile_script(version, plan)

    assert flags(build) | flags(profile) <= PUBLISHED[version]
    assert not (flags(build) | flags(profile)) & PRECISION
    assert ("stronglyTyped" in flags(build)) == version.startswith("10.")
    assert flags(profile) & COMPARABLE == (COMPARABLE if version.startswith("10.") else set())
    assert {
        "noTF32",
        "onnx",
        "saveEngine",
        "timingCacheFile",
        "minShapes",
        "optShapes",
        "maxShapes",
    } <= flags(build)
    assert {"loadEngine", "exportTimes", "exportProfile", "exportLayerInfo", "shapes"} <= flags(profile)


def test_options_reach_the_script(plan):
    script = trtexec.build_script("10.16", plan, EVERYTHING)

    for flag in ("memPoolSize=workspace:1024", "maxAuxStreams=0", "hardwareCompatibilityLevel=ampere+",
                 "builderOptimizationLevel=5", "versionCompatible"):  # fmt: skip
        assert re.search(rf"--{re.escape(flag)}( |$)", script, re.MULTILINE), flag


def test_hardware_compatibility_that_a_version_lacks_is_refused(plan):
    options = Options(hardware_compatibility="same_compute_capability")

    assert "sameComputeCapability" in trtexec.build_script("10.16", plan, options)
    with pytest.raises(ConfigError, match=r"first in 10\.16.*\n.*ampere_plus"):
        trtexec.build_script("10.3", plan, options)


def test_a_static_cache_stands_in_no_shape(plan):
    script = trtexec.build_script("10.3", plan, Options())
    decoder = script[script.index("echo decoder_model_merged") :]

    assert f"--maxShapes=inputs_embeds:1x{ROWS}x64,position_ids:1x{ROWS}" in decoder
    assert decoder.index("--profile=0") < decoder.index("--minShapes") < decoder.index("--profile=1")
    assert "past_" not in decoder


@pytest.mark.parametrize("name", TARGETS)
def test_the_scripts_run_where_they_lie(name, tmp_path):
    """With a trtexec that notes how it was called, looks for its files and writes what it was asked for."""
    folder = tmp_path / "a bundle's folder"
    plan = jobs.plan(folder, write_manifest(folder))
    build, profile = trtexec.write(folder, targets.get(name), plan, Options())
    fake = tmp_path / "trtexec"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    for script in (build, profile):
        subprocess.run(["sh", "-n", script], check=True)
        done = run(script, TRTEXEC=fake)
        assert done.returncode == 0, done.stderr

    made = folder / "trt" / name / "trtexec"
    assert {p.name for p in made.glob("*.engine")} == {f"{job.name}.engine" for job in plan}
    assert {p.name for p in made.glob("*.times.json")} == {
        "vision_encoder.times.json", "embed_tokens.decode.times.json", "embed_tokens.prefill.times.json",
        "decoder_model_merged.decode.times.json", "decoder_model_merged.prefill.times.json",
    }  # fmt: skip
    assert (made / "decoder_model_merged.prefill.position_ids.bin").read_bytes() == bytes(8 * ROWS)
    assert (made / "decoder_model_merged.decode.past_lengths.bin").read_bytes() == bytes(8)
    assert not list(made.glob("*.partial"))


FAKE = """#!/bin/sh
for flag in "$@"; do
  case $flag in
    --onnx=*|--loadEngine=*) [ -f "${flag#*=}" ] || { echo "no ${flag#*=}" >&2; exit 1; } ;;
    --loadInputs=*) echo "${flag#*=}" | tr , '\\n' | while IFS=: read -r _ file; do [ -f "$file" ] || exit 1; done || exit 1 ;;
    --saveEngine=*|--export*=*) echo made > "${flag#*=}" ;;
  esac
done
"""


def run(script: Path, **environment):
    return subprocess.run(
        ["sh", script], capture_output=True, text=True, check=False, cwd="/",
        env={**os.environ, **{k: str(v) for k, v in environment.items()}},
    )  # fmt: skip


def test_a_trtexec_that_is_missing_or_fails_is_told(tmp_path):
    folder = tmp_path / "b"
    plan = jobs.plan(folder, write_manifest(folder), ["vision_encoder"])
    build, profile = trtexec.write(folder, targets.get("trt-10.3"), plan, Options())
    missing, failed, engineless = (
        run(build, TRTEXEC=tmp_path / "nowhere"), run(build, TRTEXEC="false"), run(profile, TRTEXEC="true"),
    )  # fmt: skip

    assert (missing.returncode, failed.returncode, engineless.returncode) == (2, 1, 2)
    assert "hint:  install TensorRT 10.3" in missing.stderr
    assert "hint:  fico build, or sh build.sh" in engineless.stderr
    assert not list((folder / "trt/trt-10.3/trtexec").glob("*.engine*"))


def test_trtexec_lies_elsewhere_from_10_15_on(plan):
    assert "/usr/src/tensorrt/bin/trtexec" in trtexec.build_script("10.13", plan, Options())
    assert "{TRTEXEC:-/usr/bin/trtexec}" in trtexec.build_script("10.16", plan, Options())


@pytest.mark.parametrize("name", ["rtx", "portable", "ort"])
def test_targets_without_a_trtexec_are_refused(name, plan, tmp_path):
    with pytest.raises(ConfigError, match="no trtexec"):
        trtexec.write(tmp_path, targets.get(name), plan, Options())


@pytest.mark.parametrize("name", ["x; rm -rf", "../../x", "/tmp/x", "a/b", "-x", "..", "$(id)", "é", ""])
def test_a_name_that_is_a_path_or_that_a_shell_would_run_is_refused(name, plan, tmp_path):
    """The manifest takes no such name either; a script is written all the same only of names that are safe in one."""
    job = plan[0]
    tensor = job.graph.inputs[0].model_copy(update={"name": name})
    for bad in (
        replace(job, name=name),
        replace(job, graph=job.graph.model_copy(update={"file": f"{name}/../x.onnx"})),
        replace(job, graph=job.graph.model_copy(update={"inputs": [tensor]})),
    ):
        with pytest.raises(ConfigError, match="no name for a script"):
            trtexec.write(tmp_path, targets.get("trt-11"), [bad], Options())
    assert not (tmp_path / "trt").exists()
