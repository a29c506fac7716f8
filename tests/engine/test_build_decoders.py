"""Every graph of a bundle with a static cache becomes an engine, in either dialect, with one profile or two."""

import pytest
from cli_tools import copied, in_this_process

from fico_export.bundle.engines import Build
from fico_export.bundle.manifest import Manifest

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install '.[rtx]'")


@pytest.fixture
def build(make_bundle, tiny_checkpoint, tmp_path, capsys):
    """build(target, *arguments, **export) → build.json of all the graphs of a bundle, by TensorRT-RTX."""

    def run(target, *arguments, **options):
        shared = make_bundle(tiny_checkpoint, 16, precision="fp16", target=target, verify=False, **options)
        bundle = copied(shared, tmp_path / "bundle")
        done = in_this_process(capsys, "fico", "build", bundle, "--target", "rtx", *arguments, "--json")
        assert done.code == 0, done.err
        made = Build.load(bundle, "rtx")
        assert made.engines.keys() == Manifest.load(bundle).graphs.keys() - {"embed_tokens"}
        return made.engines

    return run


@pytest.mark.parametrize("target", ["rtx", "trt-10.3"])
def test_both_dialects_build(target, build):
    engines = build(target)

    assert engines["decoder_model_merged"].profiles == [{"sequence_length": (1, 1, 512)}]


def test_a_decoder_that_reduces_builds_for_tokens_and_prompts(build):
    engines = build(
        "rtx", "--profiles", "2", "--compute-capability", "8.6", method="fastv", settings={"layer": 1}
    )

    assert engines["decoder_with_past"].profiles == [
        {"sequence_length": (1, 1, 1)},
        {"sequence_length": (1, 512, 512)},
    ]
    assert engines["decoder_prefill"].profiles == [{"sequence_length": (66, 130, 1024)}]
