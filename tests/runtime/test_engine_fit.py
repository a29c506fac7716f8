"""Engines are refused where they do not fit: the machine, the graphs, their own files; and the memory. No GPU is needed for that.

The engines are real, of TensorRT-RTX; only the machine that is to run them is made up.
"""

import json
import logging
from dataclasses import replace

import pytest
from cli_tools import copied, edit_json, flip_a_bit, in_this_process

import fico_export
from fico_export.bundle import engine_check, engines, files
from fico_export.bundle.engine_check import Host, require_host, require_tensors, this_platform
from fico_export.bundle.engines import Build, Engine, Options
from fico_export.bundle.manifest import Manifest
from fico_export.devices import gpu
from fico_export.errors import BundleError, ConfigError, FicoError
from fico_export.runtime.backends.trt import engines as runtime_engines
from fico_export.runtime.backends.trt import memory as engine_memory
from fico_export.runtime.backends.trt.engine import CUDA_GRAPH, cuda_graphs_wanted
from fico_export.runtime.backends.trt.engines import fitting_build

rtx = pytest.importorskip("rtx", exc_type=ImportError, reason="needs TensorRT-RTX: pip install '.[rtx]'")

VERSION = rtx.trt.__version__
GRAPHS = ("vision_encoder", "decoder_model_merged")
HERE = Host("tensorrt_rtx", VERSION, this_platform(), "8.6", "RTX 3090")


@pytest.fixture(scope="module")
def built(make_bundle, tiny_checkpoint, tmp_path_factory):
    """A bundle for rtx with engines for compute capability 8.6. Shared: copy it to change it."""
    exported = make_bundle(tiny_checkpoint, 16, precision="fp16", target="rtx", verify=False)
    folder = copied(exported, tmp_path_factory.mktemp("built") / "bundle")
    manifest, place = Manifest.load(folder), folder / "trt/rtx"
    place.mkdir(parents=True)
    made = {}
    for name in GRAPHS:
        graph, sizes = folder / manifest.graphs[name].file, {"sequence_length": (1, 1, 512)}
        free = sizes if name.startswith("decoder") else {}
        plan = bytes(rtx.compile_engine(graph, free, ("8.6",)))
        (place / f"{name}.engine").write_bytes(plan)
        sources = [file for file in manifest.files if file.startswith(manifest.graphs[name].file)]
        made[name] = Engine(
            file=f"{name}.engine",
            sha256=files.sha256(place / f"{name}.engine"),
            size=len(plan),
            sources={file: manifest.files[file].sha256 for file in sources},
            profiles=[free],
            seconds=1.0,
            peak_bytes=1,
        )
    Build(
        target="rtx",
        runtime="tensorrt_rtx",
        version=VERSION,
        platform=this_platform(),
        compute_capabilities=["8.6"],
        options=Options(),
        engines=made,
        created="2026-01-01T00:00:00Z",
    ).save(place)
    return folder


@pytest.fixture
def own(built, tmp_path):
    """One to damage."""
    return copied(built, tmp_path / "own")


@pytest.fixture
def machine(monkeypatch):
    """machine(**changes): what this machine is, in place of one with the engines' GPU."""

    def become(**changes):
        monkeypatch.setattr(runtime_engines, "host", lambda backend: replace(HERE, **changes))

    become()
    return become


def find(folder, backend="rtx"):
    return fitting_build(folder, Manifest.load(folder), backend)


def refused(function, *arguments, words, **options):
    with pytest.raises(BundleError) as refusal:
        function(*arguments, **options)
    for word in words:
        assert word in str(refusal.value)
    return refusal.value


def test_engines_that_fit_are_found(built, machine):
    assert find(built).engines.keys() == set(GRAPHS)
    assert engine_check.check_engines(built, Manifest.load(built), "rtx", full=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "1.8.0.5"}, [VERSION, "1.8.0.5 is installed here"]),
        (
            {"compute_capability": "8.9", "gpu": "RTX 4090"},
            ["8.6", "RTX 4090 has 8.9", "--compute-capability 8.9"],
        ),
        ({"platform": "linux-aarch64"}, [this_platform(), "linux-aarch64"]),
    ],
)
def test_engines_for_another_machine_are_refused(built, machine, changes, words):
    machine(**changes)

    refused(find, built, words=[*words, f"fico build {built} --target rtx"])


def test_engines_of_another_library_are_refused(built, machine):
    refused(find, built, "trt", words=["no engines of TensorRT, only for rtx", "fico build"])
    build = Build.load(built, "rtx")
    refused(
        require_host,
        built,
        build,
        replace(HERE, runtime="tensorrt"),
        words=["TensorRT-RTX's", "--backend rtx"],
    )


def test_an_rtx_engine_is_the_same_on_windows(built, machine):
    processor = this_platform().split("-")[1]
    machine(platform=f"windows-{processor}")

    assert find(built)


@pytest.mark.parametrize(
    ("made", "compatible", "here", "runs"),
    [
        ("10.3.0.30", False, "10.3.0", True),
        ("10.3.0.30", False, "10.3.1", False),
        ("10.3.0.30", False, "10.16.2.10", False),
        ("10.3.0.30", True, "10.16.2.10", True),
        ("10.16.2.10", True, "10.3.0.30", False),
        ("10.3.0.30", True, "11.4.1.3", True),
        ("11.4.1.3", True, "10.16.2.10", False),
        ("8.6.2.3", True, "11.0.0.1", False),
        ("11.0.0.1", True, "12.0.0.1", False),
    ],
)
def test_which_versions_of_tensorrt_run_an_engine(built, made, compatible, here, runs):
    build = Build.load(built, "rtx").model_copy(
        update={"runtime": "tensorrt", "version": made, "options": Options(version_compatible=compatible)}
    )
    host = replace(HERE, runtime="tensorrt", version=here)
    if runs:
        require_host(built, build, host)
    else:
        refused(require_host, built, build, host, words=[made, f"{here} is installed here"])


def test_an_rtx_engine_runs_on_no_other_release(built):
    build = Build.load(built, "rtx").model_copy(update={"options": Options(version_compatible=True)})

    refused(require_host, built, build, replace(HERE, version="1.99.0.1"), words=["1.99.0.1"])


@pytest.mark.parametrize(
    ("level", "capability", "runs"),
    [
        ("none", "8.6", True),
        ("none", "8.9", False),
        ("ampere_plus", "8.7", True),
        ("ampere_plus", "12.0", True),
        ("ampere_plus", "7.5", False),
        ("same_compute_capability", "8.6", True),
        ("same_compute_capability", "8.9", False),
    ],
)
def test_which_gpus_run_an_engine(built, level, capability, runs):
    options = Options(hardware_compatibility=level)
    build = Build.load(built, "rtx").model_copy(update={"runtime": "tensorrt", "options": options})
    host = replace(HERE, runtime="tensorrt", compute_capability=capability, gpu="the GPU")
    if runs:
        require_host(built, build, host)
    else:
        refused(
            require_host, built, build, host, words=["compute capability 8.6", f"the GPU has {capability}"]
        )


def test_a_tensorrt_engine_does_not_move_to_another_platform(built):
    build = Build.load(built, "rtx").model_copy(update={"runtime": "tensorrt", "platform": "linux-x86_64"})

    for there in ("linux-aarch64", "windows-x86_64"):
        host = replace(HERE, runtime="tensorrt", platform=there)
        refused(require_host, built, build, host, words=["linux-x86_64", there])


def test_engines_of_graphs_that_were_exported_again_are_refused(own, machine):
    manifest = Manifest.load(own)
    file = manifest.graphs["vision_encoder"].file
    content = json.loads((own / "manifest.json").read_text())
    content["files"][file]["sha256"] = "0" * 64
    (own / "manifest.json").write_text(json.dumps(content))

    refused(find, own, words=["vision_encoder", file, "has changed since", f"fico build {own} --target rtx"])


def test_engines_of_a_graph_with_other_files_are_refused(own, machine):
    content = json.loads((own / "manifest.json").read_text())
    graph = content["graphs"]["decoder_model_merged"]
    content["files"]["onnx/other.onnx"] = content["files"][graph["file"]]
    graph["file"] = "onnx/other.onnx"
    (own / "manifest.json").write_text(json.dumps(content))

    refused(find, own, words=["decoder_model_merged", "built of other files than onnx/other.onnx"])


def test_an_engine_that_was_not_built_is_refused(own, machine):
    edit_json(own / "trt/rtx/build.json", engines__decoder_model_merged=...)

    refused(find, own, words=["no engine of decoder_model_merged, only of vision_encoder", "fico build"])


def file_of(folder, name="vision_encoder", *, full=False):
    return engine_check.require_file(folder, Build.load(folder, "rtx"), name, full=full)


def test_a_truncated_engine_is_refused(own):
    path = own / "trt/rtx/vision_encoder.engine"
    content = path.read_bytes()
    path.write_bytes(content[:-1])

    refused(file_of, own, words=["truncated", str(len(content) - 1), str(len(content)), "fico build"])


def test_another_file_is_refused(own):
    (own / "trt/rtx/vision_encoder.engine").write_bytes(
        (own / "trt/rtx/decoder_model_merged.engine").read_bytes() + bytes(10_000_000)
    )
    refused(file_of, own, words=["another file", "fico build"])


def test_another_file_of_the_same_size_is_refused(own, monkeypatch):
    flip_a_bit(own / "trt/rtx/vision_encoder.engine")
    refused(file_of, own, words=["another file", "SHA-256", "fico build"])

    monkeypatch.setattr(files, "QUICK_LIMIT_BYTES", 1000)  # a large one, when it is looked at closely
    assert file_of(own)
    refused(file_of, own, words=["another file", "SHA-256"], full=True)


def test_a_missing_engine_is_refused(own):
    (own / "trt/rtx/vision_encoder.engine").unlink()

    refused(file_of, own, words=["trt/rtx/vision_encoder.engine is missing", "fico build"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["has no engines for rtx"]),
        ("{", ["build.json is damaged"]),
        ("[]", ["build.json is damaged"]),
        ('{"schema_version": 1}', ["build.json is damaged"]),
        (f'{{"schema_version": {engines.SCHEMA_VERSION + 1}}}', ["schema version", "update fico_export"]),
    ],
)
def test_a_sidecar_that_cannot_be_read_is_refused(own, machine, content, words):
    path = own / "trt/rtx/build.json"
    path.unlink() if content is None else path.write_text(content)

    refused(find, own, words=[*words, "fico build", "--target rtx"])


def test_the_engine_of_another_graph_is_refused(built):
    graph = Manifest.load(built).graphs["decoder_model_merged"]
    shapes = {
        name: tuple(n if isinstance(n, int) else -1 for n in shape) for name, shape in graph.shapes().items()
    }
    require_tensors("decoder", graph, shapes, "fix")

    fewer = {name: shape for name, shape in shapes.items() if name != "logits"}
    refused(require_tensors, "decoder", graph, fewer, "fix", words=["another graph", "logits"])
    cache = "past_key_values.0.key"
    other = shapes | {cache: (*shapes[cache][:2], 99, shapes[cache][3])}
    refused(require_tensors, "decoder", graph, other, "fix", words=["another graph", cache, "99"])


def test_inspect_shows_engines_and_checks_them(own, capsys):
    def fico(*arguments):
        return in_this_process(capsys, "fico", *arguments)

    shown = fico("inspect", own, "--check").out
    assert f"rtx: TensorRT-RTX {VERSION}" in shown
    assert "compute capability 8.6" in shown
    assert "sequence_length 1…512" in shown
    assert fico("inspect", own, "--json").json["engines"]["rtx"]["version"] == VERSION

    flip_a_bit(own / "trt/rtx/decoder_model_merged.engine")
    fico("inspect", own, "--check").refuses("decoder_model_merged.engine is another file", "fico build")


def test_a_folder_of_scripts_is_no_engine(built, tmp_path, capsys):
    (tmp_path / "trt/trt-10.3").mkdir(parents=True)
    (tmp_path / "trt/trt-10.3/build.sh").write_text("")

    assert engine_check.built_targets(tmp_path) == []
    assert engine_check.built_targets(built) == ["rtx"]


def test_a_bundle_without_engines_names_the_command(make_bundle, tiny_checkpoint, machine):
    exported = make_bundle(tiny_checkpoint, 16, precision="fp16", target="rtx", verify=False)

    refused(
        fico_export.load,
        exported,
        backend="rtx",
        words=["has no engines", f"fico build {exported} --target rtx"],
    )
    refused(fico_export.load, exported, backend="trt", words=["has no engines of TensorRT", "trt-10.3 or "])


def test_a_bundle_with_a_growing_cache_is_refused(own):
    content = json.loads((own / "manifest.json").read_text())
    for tensor in content["graphs"]["decoder_model_merged"]["inputs"]:
        if tensor["name"].startswith("past_key_values."):
            tensor["shape"][2] = "past_sequence_length"
    (own / "manifest.json").write_text(json.dumps(content | {"target": "portable"}))

    for backend, target in (("trt", "--target trt-10.3 or trt-10.13"), ("rtx", "--target rtx")):
        with pytest.raises(
            ConfigError, match="target portable, whose decoder has a cache that grows"
        ) as refusal:
            fico_export.load(own, backend=backend)
        assert target in refusal.value.fix
    assert fico_export.load(own, backend="auto").backend in ("ort-cpu", "ort-cuda")


@pytest.mark.skipif(gpu.count() > 0, reason="there is a GPU")
def test_without_a_gpu_the_backend_is_refused_and_auto_says_so_once(built, caplog):
    with pytest.raises(FicoError) as refusal:
        fico_export.load(built, backend="rtx")
    assert "cuda" in refusal.value.what.lower()
    assert "driver" in refusal.value.fix

    with caplog.at_level(logging.WARNING):
        assert fico_export.load(built).backend == "ort-cpu"
    (record,) = [r for r in caplog.records if "engines for rtx are not used" in r.message]
    assert "cuda" in record.message.lower()


def test_memory_is_counted_before_anything_is_loaded(built):
    manifest, build = Manifest.load(built), Build.load(built, "rtx")
    plans = {name: (built / f"trt/rtx/{name}.engine").stat().st_size for name in GRAPHS}
    rows = manifest.decoder
    graph = manifest.graphs["decoder_model_merged"].shapes()["past_key_values.0.key"]
    cache = 2 * rows.layers * rows.kv_heads * graph[2] * rows.head_dim * 2  # keys and values of FP16
    steps = [["decoder_model_merged"], ["vision_encoder"], ["embed_tokens"]]
    whole, parted = sum(plans.values()) + cache, max(plans.values()) + cache

    def require(free, **options):
        engine_memory.require_device_memory(manifest, build, steps, free, **options)

    require(whole, low_memory=False)
    require(parted, low_memory=True)
    with pytest.raises(ConfigError, match="--low-memory"):
        require(whole - 1, low_memory=False)
    with pytest.raises(ConfigError, match="--max-context") as refusal:
        require(parted - 1, low_memory=False)
    assert "--low-memory" not in refusal.value.fix


@pytest.mark.parametrize(("value", "wanted"), [(None, True), ("1", True), ("0", False)])
def test_cuda_graphs_can_be_switched_off(monkeypatch, value, wanted):
    monkeypatch.delenv(CUDA_GRAPH, raising=False)
    if value is not None:
        monkeypatch.setenv(CUDA_GRAPH, value)

    assert cuda_graphs_wanted() is wanted


def test_another_value_of_the_switch_is_refused(monkeypatch):
    monkeypatch.setenv(CUDA_GRAPH, "off")

    with pytest.raises(ConfigError, match="FICO_CUDA_GRAPH is 'off'"):
        cuda_graphs_wanted()
