"""Models with random weights at real sizes, written piece by piece: LLaVA checkpoints, and a Llama as GGUF for llama.cpp.

The words mean nothing; memory and time are those of the real thing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from fico_export.demo import checkpoint as demo
from fico_export.models import packaged

VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
_SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
          "image_size": 112}  # fmt: skip
_COLUMNS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "vocab_size")  # fmt: skip
TEXT: dict[str, dict[str, int]] = {
    size: dict(zip(_COLUMNS, row, strict=True))
    for size, row in {
        "tiny": (128, 352, 4, 4, 2, 512),
        "1b": (2048, 5632, 22, 32, 4, 32064),
        "7b": (4096, 11008, 32, 32, 32, 32064),
        "13b": (5120, 13824, 40, 40, 40, 32064),
        "mistral-7b": (4096, 14336, 32, 32, 8, 32064),
    }.items()
}
SHARD_BYTES = 2e9
_Q4_0, _Q6_K, _F32 = 2, 14, 0
_ALIGNMENT = 32


def write_checkpoint(folder: Path, size: str, kind: str = "Llava") -> None:
    """A LLaVA-1.5 checkpoint in FP16, or of kind `LlavaNext` one of that family; memory is that of one shard."""
    folder.mkdir(parents=True)
    mistral = {"model_type": "mistral", "sliding_window": None, "max_position_embeddings": 32768}
    text = TEXT[size] | (
        mistral if "mistral" in size else {"model_type": "llama", "max_position_embeddings": 4096}
    )
    vision = VISION | (_SMALL if size == "tiny" else {})
    image_id = TEXT[size]["vocab_size"] - 64
    patches = (int(vision["image_size"]) // int(vision["patch_size"])) ** 2
    grids = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)] if kind == "LlavaNext" else []
    side = int(vision["image_size"])
    pinpoints = (
        {"image_grid_pinpoints": [[rows * side, columns * side] for rows, columns in grids]} if grids else {}
    )
    config = getattr(transformers, f"{kind}Config")(
        **pinpoints, vision_config=vision, text_config=text, image_token_index=image_id,
        pad_token_id=image_id + 1, image_seq_length=patches, dtype="float16",
    )  # fmt: skip
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
        shapes = {k: v.shape for k, v in model.named_parameters()}
    config.architectures = [f"{kind}ForConditionalGeneration"]
    config.save_pretrained(folder)
    write_shards(folder, shapes)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": image_id + 1}
    (folder / "generation_config.json").write_text(json.dumps(ids))
    demo.write_tokenizer(folder, [demo._WORDS, demo._WORDS.upper()], image_id)
    demo.write_processor(folder, vision)
    if kind != "Llava":
        path = folder / "preprocessor_config.json"
        named = {
            "image_processor_type": f"{kind}ImageProcessor",
            "image_grid_pinpoints": config.image_grid_pinpoints,
        }
        path.write_text(json.dumps(json.loads(path.read_text()) | named))


def write_shards(folder: Path, shapes: dict[str, torch.Size]) -> None:
    """Random weights of these shapes, shard by shard, and their index."""
    generator = torch.Generator().manual_seed(0)
    shards: list[list[str]] = [[]]
    filled = 0.0
    for name, shape in shapes.items():
        if filled > SHARD_BYTES:
            shards.append([])
            filled = 0.0
        shards[-1].append(name)
        filled += 2 * shape.numel()
    index: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _weights(name, shapes[name], generator) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    content = {"metadata": {"total_size": sum(2 * s.numel() for s in shapes.values())}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _weights(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Scaled by fan-in, so that activations stay of order one."""
    if "norm" in name or "layrnorm" in name:
        return torch.full(shape, float(name.endswith("weight")), dtype=torch.float16)
    std = 1.0 if "embed" in name else 0.1 if len(shape) == 1 else shape[1:].numel() ** -0.5
    return torch.empty(shape, dtype=torch.float16).normal_(0, std, generator=generator)


def write_gguf(path: Path, size: str) -> None:
    """The decoder alone as `llama-quantize … Q4_0` leaves it: Q4_0 matrices, a Q6_K head, FP32 norms.

    A Llama's of `TEXT`, or a Qwen3's of the alias of a Qwen3-VL, with the norms of its queries and keys.
    Source: docs/gguf.md of ggml; block layouts in its ggml-common.h.
    """
    text, kind = (TEXT[size], "llama") if size in TEXT else (_qwen3_text(size), "qwen3")
    hidden, heads, kv_heads = text["hidden_size"], text["num_attention_heads"], text["num_key_value_heads"]
    head = text.get("head_dim", hidden // heads)
    metadata: dict[str, Any] = {
        "general.architecture": kind,
        "general.file_type": np.uint32(2),
        f"{kind}.vocab_size": np.uint32(text["vocab_size"]),
        f"{kind}.context_length": np.uint32(4096),
        f"{kind}.embedding_length": np.uint32(hidden),
        f"{kind}.block_count": np.uint32(text["num_hidden_layers"]),
        f"{kind}.feed_forward_length": np.uint32(text["intermediate_size"]),
        f"{kind}.rope.dimension_count": np.uint32(head),
        f"{kind}.attention.head_count": np.uint32(heads),
        f"{kind}.attention.head_count_kv": np.uint32(kv_heads),
        f"{kind}.attention.key_length": np.uint32(head),
        f"{kind}.attention.value_length": np.uint32(head),
        f"{kind}.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "tokenizer.ggml.model": "none",
    }
    tensors = list(_gguf_tensors(text))
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            _write_string(file, key)
            if isinstance(value, str):
                file.write(struct.pack("<I", 8))
                _write_string(file, value)
            else:
                file.write(struct.pack("<I", 6 if isinstance(value, np.float32) else 4) + value.tobytes())
        offset = 0
        for name, shape, kind in tensors:
            _write_string(file, name)
            file.write(struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]))
            file.write(struct.pack("<IQ", kind, offset))
            offset += _padded(_blocks(shape, kind)[0] * _blocks(shape, kind)[1])
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
        for _, shape, kind in tensors:
            content = _gguf_content(shape, kind, generator)
            file.write(content + b"\0" * (_padded(len(content)) - len(content)))


def _qwen3_text(alias: str) -> dict[str, Any]:
    """The decoder of an alias's packaged config.json."""
    source = packaged(alias)
    assert source is not None, f"{alias} has no packaged config.json"
    text: dict[str, Any] = json.loads((source / "config.json").read_text())["text_config"]
    return text


def _gguf_tensors(text: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    hidden, inner, vocab = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    head = text.get("head_dim", hidden // text["num_attention_heads"])
    queries, kv = head * text["num_attention_heads"], head * text["num_key_value_heads"]
    yield "token_embd.weight", (vocab, hidden), _Q4_0
    yield "output_norm.weight", (hidden,), _F32
    # A block lies within a row.
    yield "output.weight", (vocab, hidden), _Q4_0 if hidden % 256 else _Q6_K
    for i in range(text["num_hidden_layers"]):
        for name, shape in {
            "attn_q": (queries, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
            "attn_output": (hidden, queries), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }.items():  # fmt: skip
            yield f"blk.{i}.{name}.weight", shape, _Q4_0
        if "head_dim" in text:
            yield f"blk.{i}.attn_q_norm.weight", (head,), _F32
            yield f"blk.{i}.attn_k_norm.weight", (head,), _F32
        yield f"blk.{i}.attn_norm.weight", (hidden,), _F32
        yield f"blk.{i}.ffn_norm.weight", (hidden,), _F32


def _blocks(shape: tuple[int, ...], kind: int) -> tuple[int, int]:
    """Number of blocks and bytes of each: Q4_0 holds 32 weights in 18 bytes, Q6_K 256 in 210."""
    weights, size = {_Q4_0: (32, 18), _Q6_K: (256, 210), _F32: (1, 4)}[kind]
    return int(np.prod(shape)) // weights, size


def _gguf_content(shape: tuple[int, ...], kind: int, generator: np.random.Generator) -> bytes:
    count, size = _blocks(shape, kind)
    if kind == _F32:
        return np.ones(count, np.float32).tobytes()
    blocks = generator.integers(0, 256, (count, size), dtype=np.uint8)
    # A block's own scale stands first in Q4_0, last in Q6_K, whose sixteen signed group scales stand before it.
    scale = np.float16(shape[1] ** -0.5 / (4.6 if kind == _Q4_0 else 18.0 * 70.0))
    at = 0 if kind == _Q4_0 else size - 2
    blocks[:, at : at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.tobytes()


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT


def _write_string(file: BinaryIO, text: str) -> None:
    file.write(struct.pack("<Q", len(text)) + text.encode())
