"""Manifests by hand, of a decoder with a static cache, so that what is planned for it needs no export."""

from fico_export.bundle.manifest import Manifest
from fico_export.bundle.profiles import square

ROWS = 96
GRAPHS = {
    "vision_encoder": {"pixel_values": ("float32", [1, 3, 112, 112])},
    "embed_tokens": {"input_ids": ("int64", ["batch_size", "sequence_length"])},
    "decoder_model_merged": {
        "inputs_embeds": ("float16", [1, "sequence_length", 64]),
        "position_ids": ("int64", [1, "sequence_length"]),
        "past_lengths": ("int64", [1]),
        "past_key_values.0.key": ("float16", [1, 2, ROWS, 16]),
        "past_key_values.0.value": ("float16", [1, 2, ROWS, 16]),
    },
}
PREFILL = {
    "inputs_embeds": ("float16", [1, "sequence_length", 64]),
    "position_ids": ("int64", [1, "sequence_length"]),
    "visual_rows": ("int64", [1, 16]),
}
HASH = "0" * 64


def _graph(name):
    """The least of an ONNX file: its doc_string."""
    return b"\x32" + bytes([len(name)]) + name.encode()


def write_manifest(folder, graphs=GRAPHS, *, target="trt-10.3", table=False, context=4096, handed_over=16):
    """A bundle with graphs that hold nothing but their name."""
    (folder / "onnx").mkdir(parents=True)
    for name in graphs:
        (folder / f"onnx/{name}.onnx").write_bytes(_graph(name))
    manifest = Manifest.model_validate(
        {
            "name": folder.name,
            "model": {"model_type": "llava", "source": "m", "revision": None, "weights": {}},
            "reduction": {
                "method": "none", "options": {}, "steps": [], "visual_tokens": 64, "handed_over": handed_over,
                "keep": handed_over - ("decoder_prefill" in graphs), "cached": [handed_over], "positions": "compact",
            },
            "decoder": {
                "layers": 1, "kv_heads": 2, "head_dim": 16, "hidden_size": 64, "vocab_size": 100, "context": context,
            },
            "tokens": {"image": "<image>", "image_id": 1, "bos": None, "eos": None, "eos_ids": []},
            "profiles": [square(112, (8, 8), aside=0, patch_size=14).model_copy(update={"handed_over": handed_over})],
            "layout": {"rule": "square"},
            "precision": "fp16",
            "target": target,
            "opset": 18,
            "ir_version": 10,
            "graphs": {
                name: {
                    "file": f"onnx/{name}.onnx",
                    "inputs": [{"name": n, "dtype": d, "shape": s} for n, (d, s) in inputs.items()],
                    "outputs": [],
                    "weight_bytes": 1000,
                }
                for name, inputs in graphs.items()
            },
            "embedding": {"file": "t", "offset": 0, "dtype": "float16", "shape": [100, 64]} if table else None,
            "tools": {},
            "created": "2026-01-01T00:00:00+00:00",
            "files": {f"onnx/{name}.onnx": {"sha256": HASH, "size": len(_graph(name))} for name in graphs},
        }
    )  # fmt: skip
    manifest.save(folder)
    return manifest
