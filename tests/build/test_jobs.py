"""What is built of a bundle: which graphs, of what files, for which lengths."""

import numpy as np
import onnx
import pytest
from build.bundles import GRAPHS, HASH, PREFILL, ROWS, write_manifest
from onnx import TensorProto, helper

from fico_export.build import jobs
from fico_export.errors import BundleError, ConfigError


def planned(folder, *graphs, profiles=1, **options):
    manifest = write_manifest(folder / "b", **options)
    return {job.name: job for job in jobs.plan(folder / "b", manifest, graphs, profiles=profiles)}


def test_one_profile_reaches_from_a_token_to_the_rows_of_the_cache(tmp_path):
    found = planned(tmp_path)

    assert list(found) == list(GRAPHS)
    assert found["vision_encoder"].profiles == [{}]
    assert found["decoder_model_merged"].profiles == [{"sequence_length": (1, 1, ROWS)}]
    assert found["embed_tokens"].profiles == [{"batch_size": (1, 1, 1), "sequence_length": (1, 1, ROWS)}]
    assert found["vision_encoder"].sources == {"onnx/vision_encoder.onnx": HASH}


def test_prompts_come_in_pieces_of_512(tmp_path):
    wide = {name: dict(inputs) for name, inputs in GRAPHS.items()}
    for part in ("key", "value"):
        wide["decoder_model_merged"][f"past_key_values.0.{part}"] = ("float16", [1, 2, 1024, 16])

    found = planned(tmp_path, graphs=wide, profiles=2)

    assert found["decoder_model_merged"].profiles == [
        {"sequence_length": (1, 1, 1)},
        {"sequence_length": (1, 512, 512)},
    ]


def test_an_embedding_graph_whose_table_is_read_is_built_when_asked_for(tmp_path):
    assert "embed_tokens" not in planned(tmp_path / "all", table=True)
    assert list(planned(tmp_path / "one", "embed_tokens", table=True)) == ["embed_tokens"]


def test_a_prefill_that_reduces_takes_a_picture_and_a_word_on_either_side(tmp_path):
    graphs = {"decoder_with_past": GRAPHS["decoder_model_merged"], "decoder_prefill": PREFILL}

    assert planned(tmp_path, graphs=graphs)["decoder_prefill"].profiles == [
        {"sequence_length": (18, 82, ROWS)}
    ]
    with pytest.raises(ConfigError, match=r"90 visual tokens does not fit the 91.*\n.*--max-context"):
        planned(tmp_path / "small", graphs=rows(graphs, 91), handed_over=90)


def rows(graphs, count):
    def resized(shape):
        return [*shape[:2], count, shape[3]] if len(shape) == 4 else shape

    return {g: {n: (d, resized(s)) for n, (d, s) in inputs.items()} for g, inputs in graphs.items()}


def test_a_cache_that_grows_is_refused_and_the_rest_is_named(tmp_path):
    grows = rows(GRAPHS, "past_sequence_length")

    with pytest.raises(
        ConfigError, match=r"a cache that grows.*\n.*--target trt-10\.3.*--graph vision_encoder"
    ):
        planned(tmp_path, graphs={n: grows[n] for n in ("vision_encoder", "decoder_model_merged")})


def test_a_free_axis_without_a_range_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="width"):
        planned(tmp_path, graphs={"vision_encoder": {"pixel_values": ("float32", [1, 3, 8, "width"])}})


def test_an_unknown_graph_suggests_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'vision_encoder'"):
        planned(tmp_path, "vision")


@pytest.mark.parametrize("length", [1, 127, 128, 200])
def test_files_of_weights_are_those_that_onnx_finds(tmp_path, length):
    """A length of 128 takes two bytes in the file."""
    first, second = "w" * length, "model-00001-of-00002.safetensors"
    tensors = [
        external("a", first),
        external("b", second),
        helper.make_tensor("c", TensorProto.FLOAT, [1], [0.0]),
    ]
    graph = helper.make_graph([], "g", [], [], tensors)
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    read = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    named = {e.value for t in read.graph.initializer for e in t.external_data if e.key == "location"}

    assert jobs.weight_files(tmp_path / "g.onnx") == named == {first, second}


def external(name, file):
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_weights_that_the_manifest_does_not_know_are_refused(tmp_path):
    manifest = write_manifest(tmp_path / "b")
    graph = helper.make_graph([], "g", [], [], [external("a", "stranger.bin")])
    onnx.save(helper.make_model(graph), tmp_path / "b/onnx/vision_encoder.onnx")

    with pytest.raises(BundleError, match=r"onnx/stranger\.bin, of the graph 'vision_encoder'"):
        jobs.plan(tmp_path / "b", manifest)
