"""INT4 bundles whole: exported, verified against torch with the rounded weights, and answering."""

import json

import numpy as np
import onnx
import pytest
from PIL import Image

import fico_export
from fico_export.bundle.manifest import Manifest
from fico_export.devices import targets
from fico_export.errors import ConfigError

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 255, (90, 120, 3), np.uint8))


def operators(bundle, graph):
    file = bundle / Manifest.load(bundle).graphs[graph].file
    return [node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node]


@pytest.mark.exhaustive
def test_a_decoder_that_reduces_shares_its_int4_weights(tiny_checkpoint, tmp_path):
    bundle = fico_export.export(
        tiny_checkpoint, 16, method="fastv", settings={"layer": 1}, precision="int4", block=32,
        quantize_head="int4", out=tmp_path / "bundle", verify=False,
    )  # fmt: skip
    manifest = Manifest.load(bundle)

    assert manifest.quantization.form == "dequantize"
    assert manifest.quantization.scheme == "rtn"
    assert sorted(g.file for g in manifest.graphs.values()) == [
        "onnx/decoder_prefill_q4f16.onnx",
        "onnx/decoder_with_past_q4f16.onnx",
        "onnx/embed_tokens_fp16.onnx",
        "onnx/vision_encoder_fp16.onnx",
    ]
    assert not (bundle / "onnx/decoder_prefill_q4f16.onnx_data").exists()
    for graph in ("decoder_prefill", "decoder_with_past"):
        assert operators(bundle, graph).count("DequantizeLinear") == 2 * 7 + 1
    report = fico_export.verify(bundle)
    assert not report.failed
    assert not report.skipped
    cosines = {c.graph: c.value for c in report.checks if c.metric == "cosine of INT4 to FP32"}
    assert list(cosines) == ["layer 0", "layer 1", "logits"]
    assert all(0.9 < value < 0.99999 for value in cosines.values())
    assert (
        fico_export.load(bundle, backend="ort-cpu").generate("What?", [PICTURE], max_new_tokens=3).token_ids
    )


def test_matmul_nbits_with_awq_and_an_int8_tower(tiny_checkpoint_v5, tmp_path, monkeypatch):
    portable = targets.get("portable")
    int4 = targets.Int4(form="matmul_nbits", activations="fp32", opset=18, signed_scales=True)
    contrib = portable.model_copy(update={"name": "contrib", "int4": int4})
    monkeypatch.setattr(targets, "get", lambda name: contrib if name == "contrib" else portable)
    PICTURE.save(tmp_path / "picture.png")
    (tmp_path / "set.jsonl").write_text(json.dumps({"image": "picture.png", "prompt": "What is it?"}))
    bundle = fico_export.export(
        tiny_checkpoint_v5, 16, method="uniform", precision="int4", target="contrib", block=128,
        quantize_head="int8", quantize_vision="int8", calibrate=tmp_path / "set.jsonl", out=tmp_path / "bundle",
        verify=False,
    )  # fmt: skip
    manifest = Manifest.load(bundle)

    assert manifest.quantization.scheme == "awq"
    assert (bundle / "awq.npz").exists()
    assert operators(bundle, "decoder_model_merged").count("MatMulNBits") == 2 * 7 + 1
    assert operators(bundle, "vision_encoder").count("MatMulNBits") == 5 * 6
    assert manifest.graphs["decoder_model_merged"].file == "onnx/decoder_model_merged_q4.onnx"
    # A nibble in the wrong half is no longer the same decoder: the cosine's threshold is 0.99.
    report = fico_export.verify(bundle)
    assert not report.failed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "fp16", "block": 32}, "--block with --precision fp16"),
        ({"precision": "fp32", "quantize_head": "int8"}, "--quantize-head with --precision fp32"),
        ({"precision": "int4", "block": 64}, "--block 64"),
        ({"precision": "int4", "quantize_vision": "int4"}, "--quantize-vision int4"),
        ({"precision": "int4"}, "whole blocks of 128"),  # 64 and 160 channels
    ],
    ids=str,
)
def test_what_cannot_be_quantised_is_refused_before_anything_is_written(
    options, says, tiny_checkpoint, tmp_path
):
    with pytest.raises(ConfigError, match=says):
        fico_export.export(tiny_checkpoint, 16, method="uniform", out=tmp_path / "bundle", **options)
    assert not list(tmp_path.iterdir())
