"""On a GPU, ONNX Runtime's CUDA provider answers as its CPU provider does."""

import numpy as np
import pytest

import fico_export

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_gpu_answers_as_the_cpu_does(precision, tiny_checkpoint, make_bundle, photographs):
    bundle = make_bundle(tiny_checkpoint, 16, precision=precision)
    cpu, gpu = (fico_export.load(bundle, backend=backend) for backend in ("ort-cpu", "ort-cuda"))
    for picture in photographs:
        a, b = cpu.encode_image(picture), gpu.encode_image(picture)

        assert len(np.intersect1d(a.keep_index, b.keep_index)) >= 15
        if precision == "fp32":
            first = cpu.generate("What is it?", [picture], max_new_tokens=8).token_ids
            assert gpu.generate("What is it?", [picture], max_new_tokens=8).token_ids == first


def test_auto_takes_the_gpu(tiny_checkpoint, make_bundle):
    assert fico_export.load(make_bundle(tiny_checkpoint, 16)).backend == "ort-cuda"


def test_a_conversation_reuses_the_cache_on_the_gpu(tiny_checkpoint, make_bundle, photographs):
    chat = fico_export.load(make_bundle(tiny_checkpoint, 16), backend="ort-cuda").chat()
    chat.ask("What is it?", photographs[:1], max_new_tokens=4)

    assert chat.ask("And?", max_new_tokens=4).cached_tokens > 16
