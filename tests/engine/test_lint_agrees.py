"""The lint of `rtx` and TensorRT-RTX itself say the same of planted graphs: nothing is refused that it takes."""

import onnx_ir as ir
import pytest
from onnx import TensorProto
from planted import FLOAT, attention, quantised, scattered, scatters, selection

from fico_export.devices import targets
from fico_export.exporter.lint import lint

rtx = pytest.importorskip("rtx", exc_type=ImportError, reason="needs TensorRT-RTX: pip install '.[rtx]'")
TAKEN = {
    "attention": attention(),
    "scatter-nd": scatters("ScatterND"),
    "scatter-elements": scatters("ScatterElements", "none"),
    "int4": quantised(zero=0),
    "int4 without a zero-point": quantised(),
    "int4 with negative scales": quantised(zero=0, scale=(0.5, -0.5)),
    "cache in place": scattered(),
    "top 3840": selection(3840),
    "unsorted": selection(10, is_sorted=0),
}
REFUSED = {
    "attention in fp32": attention(FLOAT),
    "attention that gives its keys": attention(outputs=("y", "present_key", "present_value")),
    "attention with a softcap": attention(softcap=30.0),
    "attention with softmax_precision": attention(softmax_precision=1),
    "scatter-nd that adds": scatters("ScatterND", "add"),
    "scatter-elements that add": scatters("ScatterElements", "add"),
    "int4 with a zero-point": quantised(zero=3),
    "uint4": quantised(zero=0, kind=TensorProto.UINT4),
    "cache copied": scattered(in_place=False),
    "cache round and round": scattered(mode="circular"),
    "cache along another axis": scattered(axis=-1),
    "top 3841": selection(3841),
}


@pytest.mark.parametrize("graph", TAKEN.values(), ids=TAKEN)
def test_what_passes_compiles(graph, tmp_path):
    ir.save(graph, tmp_path / "g.onnx")

    assert lint(graph, targets.get("rtx")) == []
    assert rtx.compile_engine(tmp_path / "g.onnx", capabilities=("8.6",)).nbytes > 0


@pytest.mark.parametrize("graph", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_does_not_compile(graph, tmp_path):
    ir.save(graph, tmp_path / "g.onnx")

    assert lint(graph, targets.get("rtx"))
    with pytest.raises(rtx.CompileError):
        rtx.compile_engine(tmp_path / "g.onnx", capabilities=("8.6",))
