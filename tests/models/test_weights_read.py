"""The tensors that are read are those of transformers; one that no graph reads is known, or refused."""

import json
import struct

import pytest
import torch
from checkpoints import SIGLIP, write_siglip, write_tiny
from cli_tools import copied, edit_json, edit_weights, split_weights
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from fico_export import models
from fico_export.errors import CheckpointError
from fico_export.models.weights import Weights, canonical

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
EMBEDDING = "language_model.embed_tokens.weight"


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A checkpoint of one's own, in the public layout."""
    return copied(tiny_checkpoint, tmp_path / "checkpoint")


def theirs(folder):
    """Every tensor of the model that transformers makes of a folder, by our names."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return {canonical(name): tensor for name, tensor in model.state_dict().items()}


def assert_read_as_transformers_does(folder):
    read, expected = models.load(folder), theirs(folder)
    for name in read.shapes:
        assert torch.equal(read.checkpoint.load(name), expected[name]), name


def shuffled(folder, name, index=INDEX):
    """Write other weights of the same shapes to a shard, and its index."""
    tensors = load_file(folder / SINGLE)
    save_file(
        {k: t.flip(0).contiguous() for k, t in tensors.items()}, folder / name, metadata={"format": "pt"}
    )
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}))


def test_a_single_file_wins_over_an_index_of_another_time(checkpoint):
    shuffled(checkpoint, "model-00001-of-00001.safetensors")

    assert_read_as_transformers_does(checkpoint)


def test_an_index_alone_beside_the_single_file_is_not_looked_at(checkpoint):
    (checkpoint / INDEX).write_text('{"weight_map": {"gone.weight": "gone.safetensors"}}')

    assert_read_as_transformers_does(checkpoint)


@pytest.mark.parametrize("named", ["other.safetensors", "other.safetensors.index.json"])
def test_a_file_that_the_config_names_wins_over_all(checkpoint, named):
    shuffled(checkpoint, "other.safetensors", "other.safetensors.index.json")
    edit_json(checkpoint / "config.json", transformers_weights=named)

    assert_read_as_transformers_does(checkpoint)


def test_shards_are_read_as_transformers_reads_them(checkpoint):
    split_weights(checkpoint)
    edit_json(checkpoint / INDEX, metadata={})  # transformers wants it

    assert_read_as_transformers_does(checkpoint)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "model.bin", "", 3, "gone.safetensors"]
)
def test_a_file_that_the_config_names_must_be_one_of_the_folder(checkpoint, name):
    edit_json(checkpoint / "config.json", transformers_weights=name)

    with pytest.raises(CheckpointError, match="transformers_weights in"):
        models.load(checkpoint)


def stored_under(folder, keep):
    """Leave only some of the head and the embeddings in a tied checkpoint; transformers saves the embeddings alone."""
    tensors = load_file(folder / SINGLE)
    name = next(key for key in tensors if canonical(key) == EMBEDDING)
    weight = tensors.pop(name)
    kept = {"embedding": {name: weight}, "head": {HEAD: weight}, "both": {name: weight, HEAD: weight.clone()},
            "other": {name: weight, HEAD: weight.flip(0).contiguous()}}[keep]  # fmt: skip
    save_file(tensors | kept, folder / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("flag", ["top", "text", "both"])
@pytest.mark.parametrize("keep", ["embedding", "head", "both", "other"])
def test_tied_weights_are_read_under_either_name(tmp_path, keep, flag):
    write_tiny(tmp_path, text={"tie_word_embeddings": True}, llava={"tie_word_embeddings": True})
    stored_under(tmp_path, keep)
    edit_json(
        tmp_path / "config.json",
        tie_word_embeddings=True if flag != "text" else ...,
        text_config__tie_word_embeddings=True if flag != "top" else ...,
    )

    assert_read_as_transformers_does(tmp_path)


@pytest.mark.parametrize(("keep", "missing"), [("embedding", HEAD), ("head", EMBEDDING)])
def test_weights_that_the_config_does_not_tie_are_not_made_up(tmp_path, keep, missing):
    write_tiny(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    save_file({k: t for k, t in tensors.items() if canonical(k) != missing}, tmp_path / SINGLE)

    with pytest.raises(CheckpointError, match=f"no tensor '{missing}'") as caught:
        models.load(tmp_path)
    if missing == HEAD:
        assert '"tie_word_embeddings": true' in caught.value.fix
        edit_json(tmp_path / "config.json", tie_word_embeddings=True)
        assert_read_as_transformers_does(tmp_path)


LAYER = "model.vision_tower.encoder.layers."
KNOWN = {
    "position ids": {"vision_tower.vision_model.embeddings.position_ids": torch.arange(65)},
    "rotary buffers": {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "language_model.model.layers.1.self_attn.rotary_emb.cos_cached": torch.ones(8),
    },
    "text tower of CLIP": {
        "vision_tower.text_model.embeddings.token_embedding.weight": torch.ones(8, 8),
        "vision_tower.text_projection.weight": torch.ones(8, 8),
        "vision_tower.logit_scale": torch.ones(()),
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_the_model_is_known_not_to_need_passes(checkpoint, name):
    edit_weights(checkpoint, lambda tensors: tensors | KNOWN[name])

    assert_read_as_transformers_does(checkpoint)


@pytest.mark.parametrize("layer", [-2, 3, [1, 4], -1])
def test_layers_after_the_one_that_is_taken_pass_and_none_before(checkpoint, layer):
    edit_json(checkpoint / "config.json", vision_feature_layer=layer)
    if isinstance(layer, list):
        edit_weights(
            checkpoint, lambda t: {k: v.repeat(1, 2) if "linear_1.weight" in k else v for k, v in t.items()}
        )

    read = models.load(checkpoint)

    assert any(name not in read.shapes for name in read.checkpoint.tensors)


def test_the_pooling_head_of_siglip_passes(tmp_path):
    write_siglip(tmp_path, vision={**SIGLIP, "vision_use_head": True})
    assert any(".head.probe" in key for key in load_file(tmp_path / SINGLE))

    models.load(tmp_path)


EXTRA = [
    "multi_modal_projector.linear_3.weight",
    "model.multi_modal_projector.image_newline",
    "image_newline",
    "model.image_newline",
    "mm_projector.0.weight",
    "model.vision_resampler.query",
    "language_model.lm_head.bias",
    "lm_head.bias",
    "score.weight",
    "v_head.summary.weight",
    "model.vision_tower.embeddings.patch_embedding.bias",
    "model.vision_tower.head.gate",
    f"{LAYER}6.mlp.fc1.weight",
    f"{LAYER}0.self_attn.q_norm.weight",
    f"{LAYER}5.self_attn.q_norm.weight",
    f"{LAYER}5.self_attn.q_proj.lora_A.default.weight",
    f"{LAYER}0.self_attn.q_proj.weight_scale",
    f"{LAYER}x.mlp.fc1.weight",
    "model.language_model.layers.0.self_attn.q_proj.bias",
    "model.language_model.layers.0.self_attn.k_scale",
    "model.language_model.embed_positions.weight",
    "model.mtp.layers.0.weight",
    "audio_tower.conv.weight",
    "base_model.model.lm_head.lora_B.weight",
    "unheard_of",
]


@pytest.mark.parametrize("name", EXTRA)
def test_a_tensor_that_no_graph_reads_is_refused_wherever_it_is(checkpoint, name):
    edit_weights(checkpoint, lambda tensors: tensors | {name: torch.ones(8)})

    with pytest.raises(CheckpointError) as caught:
        models.load(checkpoint)
    assert repr(name) in caught.value.what
    if "lora" in name:
        assert "merge" in caught.value.fix
    if "scale" in name:
        assert "quantized" in caught.value.what


def test_a_tensor_under_two_names_is_refused(checkpoint):
    edit_weights(checkpoint, lambda tensors: tensors | {HEAD: torch.ones(512, 64)})

    with pytest.raises(CheckpointError, match="'lm_head\\.weight' is stored twice"):
        models.load(checkpoint)


def test_a_tensor_in_two_shards_is_refused(checkpoint):
    split_weights(checkpoint)
    weight_map = json.loads((checkpoint / INDEX).read_text())["weight_map"]
    first, second = (load_file(checkpoint / name) for name in sorted(set(weight_map.values())))
    name = next(iter(first))
    save_file(second | {name: first[name]}, checkpoint / max(weight_map.values()))

    with pytest.raises(CheckpointError, match="is stored twice"):
        models.load(checkpoint)


def test_a_kernel_with_channels_last_is_named_as_mlx(checkpoint):
    def transpose(tensors):
        return {k: t.permute(0, 2, 3, 1).contiguous() if t.dim() == 4 else t for k, t in tensors.items()}

    edit_weights(checkpoint, transpose)

    with pytest.raises(CheckpointError, match="channels last, as MLX"):
        models.load(checkpoint)


def tensor(begin, end, shape=(2,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12),
        ({"a": tensor(0, 8), "b": tensor(16, 24)}, 24),
        ({"a": tensor(8, 0)}, 8),
        ({"a": tensor(0, 8)}, 4),
        ({"a": tensor(0, 8)}, 80),
        ({"a": tensor(0, 8, (2**62, 2**62))}, 8),
        ({"a": tensor(0, 8, (-2,))}, 8),
        ({"a": tensor(0, 10**30)}, 8),
        ({"a": tensor(-8, 0)}, 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": {"0": 1}}}, 8),
        ({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, 8),
        ({"a": 3}, 8),
        ([], 8),
        ({"__metadata__": {"a": {"b": "c"}}}, 8),
    ],
)
def test_a_header_that_lies_is_refused(checkpoint, header, data):
    text = json.dumps(header).encode()
    (checkpoint / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))

    with pytest.raises(CheckpointError, match=SINGLE):
        Weights(checkpoint)


@pytest.mark.parametrize(
    "text", [b'{"a":' * 100_000, b"\xff" * 10, b"", b'{"\\ud800": 1}', b'{"a": ' + b"9" * 10**6 + b"}"]
)
def test_a_header_that_is_no_json_within_limits_is_refused(checkpoint, text):
    (checkpoint / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text)

    with pytest.raises(CheckpointError, match=SINGLE):
        Weights(checkpoint)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 60 * 2**20, 100])
def test_a_header_that_claims_to_be_long_is_not_read(checkpoint, length):
    with (checkpoint / SINGLE).open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{}")
        file.truncate(50 * 2**20 if length != 100 else 10)

    with pytest.raises(CheckpointError, match="a header of"):
        Weights(checkpoint)


def test_a_pointer_of_git_lfs_is_named(checkpoint):
    (checkpoint / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")

    with pytest.raises(CheckpointError, match="pointer of Git LFS") as caught:
        Weights(checkpoint)
    assert caught.value.fix == f"git -C {checkpoint} lfs pull"
