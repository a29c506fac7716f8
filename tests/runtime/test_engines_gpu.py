"""On a GPU: engines that `fico build` made answer as ONNX Runtime does, with CUDA graphs and without, to the edge of the cache."""

import importlib

import numpy as np
import pytest
from cli_tools import command_line, copied, edit_json, in_own_process
from stepping import append

import fico_export
from fico_export.bundle import files
from fico_export.bundle.engines import Build
from fico_export.bundle.manifest import Manifest
from fico_export.devices import nvidia, targets
from fico_export.errors import EngineError, InputError
from fico_export.runtime.backends.trt.engine import CUDA_GRAPH

pytestmark = pytest.mark.gpu

QUESTION = "What is it?"
ROWS = 128  # the least for a method inside the decoder


@pytest.fixture(scope="module", params=[library.backend for library in nvidia.LIBRARIES])
def backend(request):
    pytest.importorskip(nvidia.of_backend(request.param).runtime, exc_type=ImportError)
    return request.param


@pytest.fixture(scope="module")
def target(backend):
    """The newest that the installed library is for."""
    if backend == "rtx":
        return "rtx"
    installed = numbers(importlib.import_module("tensorrt").__version__)[:2]
    known = [targets.get(name) for name in targets.names() if name.startswith("trt-")]
    fitting = [t for t in known if numbers(t.parser.version) <= installed]
    return max(fitting, key=lambda t: numbers(t.parser.version)).name


def numbers(version):
    return tuple(int(part) for part in version.split("."))


@pytest.fixture(scope="module")
def built(make_bundle, tiny_checkpoint, target, tmp_path_factory):
    """built(precision, *options of fico build, **options of the export) → a bundle with engines for this machine."""
    made = {}

    def make(precision="fp32", *options, method=None, settings=None):
        key = (precision, options, method)
        if key not in made:
            exported = make_bundle(
                tiny_checkpoint,
                16,
                precision=precision,
                target=target,
                method=method,
                settings=settings,
                max_context=ROWS,
            )
            folder = copied(exported, tmp_path_factory.mktemp("built") / "bundle")
            done = in_own_process(
                command_line("fico", "build", folder, "--target", target, *options), timeout=600
            )
            assert done.code == 0, done.err
            made[key] = folder
        return made[key]

    return make


def tokens(vlm, picture, count=16):
    return vlm.generate(QUESTION, [picture], max_new_tokens=count).token_ids


def test_engines_answer_as_onnx_runtime_does(backend, built, photographs):
    folder = built()
    ort, engines = (fico_export.load(folder, backend=name) for name in ("ort-cpu", backend))

    for picture in photographs:
        assert tokens(engines, picture) == tokens(ort, picture)


def test_auto_takes_engines_that_fit(backend, built):
    assert fico_export.load(built()).backend == backend


@pytest.mark.parametrize("method", ["fastv", "ficoco-l"])
def test_a_decoder_that_reduces_answers_as_onnx_runtime_does(backend, built, method, photographs):
    folder = built(method=method, settings={"layer": 1} if method == "fastv" else {})
    ort, engines = (fico_export.load(folder, backend=name) for name in ("ort-cpu", backend))
    chats = [vlm.chat() for vlm in (ort, engines)]

    for question, pictures in ((QUESTION, photographs[:1]), ("And?", [])):
        first, second = (chat.ask(question, pictures, max_new_tokens=8) for chat in chats)
        assert second.token_ids == first.token_ids


def test_features_in_fp16_are_close(backend, built, photographs):
    folder = built("fp16")
    ort, engines = (fico_export.load(folder, backend=name) for name in ("ort-cpu", backend))

    for picture in photographs:
        a, b = ort.encode_image(picture), engines.encode_image(picture)
        # Two that score alike may change places; the rest must be the same tokens, with the same features.
        common, i, j = np.intersect1d(a.keep_index, b.keep_index, return_indices=True)
        assert len(common) >= 15
        x, y = (f.astype(np.float64).ravel() for f in (a.features[i], b.features[j]))
        assert x @ y / np.linalg.norm(x) / np.linalg.norm(y) > 0.999


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_cuda_graphs_change_nothing(backend, built, precision, photographs, monkeypatch):
    folder, found = built(precision), {}
    for switch in ("0", "1"):
        monkeypatch.setenv(CUDA_GRAPH, switch)
        vlm = fico_export.load(folder, backend=backend)
        # Two conversations at a time have caches at two addresses.
        one, other = vlm.chat(), vlm.chat()
        found[switch] = [
            chat.ask(QUESTION, [picture], max_new_tokens=12).token_ids
            for chat, picture in ((one, photographs[0]), (other, photographs[1]))
        ] + [chat.ask("And?", max_new_tokens=12).token_ids for chat in (one, other)]
        captured = [graph for lane in vlm.decoder._lanes.values() for graph in lane._captured]
        assert bool(captured) == (switch == "1" and backend == "trt")  # TensorRT-RTX captures by itself

    assert found["0"] == found["1"]


def test_two_profiles_answer_as_one_does(backend, built, photographs):
    one, two = (
        fico_export.load(built("fp32", *options), backend=backend) for options in ((), ("--profiles", "2"))
    )

    assert len(two.decoder._engine.profiles) == 2
    assert tokens(two, photographs[0]) == tokens(one, photographs[0])


def test_a_prompt_in_pieces_is_the_same_prompt(backend, built):
    decoder, ids = (vlm := fico_export.load(built(), backend=backend)).decoder, list(range(5, 45))
    whole, pieces = decoder.new_cache(), decoder.new_cache()
    expected = append(decoder, whole, vlm.embed(ids), range(40))
    for start in range(0, 40, 13):
        piece = ids[start : start + 13]
        found = append(decoder, pieces, vlm.embed(piece), range(start, start + len(piece)))

    np.testing.assert_allclose(found, expected, atol=2e-3)
    pieces.drop_last(10)
    again = append(decoder, pieces, vlm.embed(ids[30:]), range(30, 40))
    np.testing.assert_allclose(again, expected, atol=2e-3)


def test_the_last_row_is_used_and_one_past_it_refused(backend, built):
    vlm = fico_export.load(built(), backend=backend)
    ort = fico_export.load(built(), backend="ort-cpu")
    caches = [(v.decoder, v.decoder.new_cache()) for v in (vlm, ort)]
    ids = [3 + i % 200 for i in range(ROWS)]
    for decoder, cache in caches:
        append(decoder, cache, vlm.embed(ids[:-1]), range(ROWS - 1))
    last = [d.append(c, vlm.embed(ids[-1:]), [ROWS - 1]) for d, c in caches]
    np.testing.assert_allclose(*last, atol=2e-3)

    decoder, cache = caches[0]
    with pytest.raises(InputError, match=f"{ROWS} tokens and 1 more") as refusal:
        append(decoder, cache, vlm.embed([3]), [ROWS])
    assert "--max-context" in refusal.value.fix
    assert set(cache.lengths) == {ROWS}


def test_an_answer_ends_where_the_cache_is_full(backend, built, photographs):
    folder = built()
    eos = Manifest.load(folder).tokens.eos_ids
    vlm = fico_export.load(folder, backend=backend)
    answer = vlm.generate(QUESTION, photographs[:1], max_new_tokens=2 * ROWS)

    assert answer.finish_reason == "context" or answer.token_ids[-1] in eos


def test_a_cache_that_nobody_holds_is_used_again(backend, built, photographs):
    vlm = fico_export.load(built(), backend=backend)
    first = tokens(vlm, photographs[0])
    for _ in range(3):
        assert tokens(vlm, photographs[0]) == first

    assert len(vlm.decoder._buffers._unused) == 1


def test_a_plan_that_the_library_does_not_know_is_refused(backend, built, target, tmp_path):
    """One that its sidecar describes rightly, so that only the library can tell."""
    folder = copied(built(), tmp_path / "own")
    path = folder / "trt" / target / Build.load(folder, target).engines["vision_encoder"].file
    path.write_bytes(bytes(1000))
    record = {"size": 1000, "sha256": files.sha256(path)}
    edit_json(
        folder / "trt" / target / "build.json",
        **{f"engines__vision_encoder__{key}": value for key, value in record.items()},
    )

    with pytest.raises(EngineError, match="cannot load") as refusal:
        fico_export.load(folder, backend=backend)
    assert "fico build" in refusal.value.fix
