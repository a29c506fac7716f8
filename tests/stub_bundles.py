"""Bundles of any files, with a right manifest: for what carries bundles and does not look into them."""

from hashlib import sha256

from fico_export.bundle import engines, manifest, profiles

FILES = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "onnx/model.onnx": bytes(range(256)) * 40}
LINKED_NS = 1_700_000_000_123_456_789


def file_of(content, mtime_ns=None):
    return manifest.File(sha256=sha256(content).hexdigest(), size=len(content), mtime_ns=mtime_ns)


def write_stub(folder, contents=None, target="portable", mtimes=None):
    """A bundle whose files are {path: bytes}; `mtimes` of those that count as linked."""
    contents, mtimes = FILES if contents is None else contents, mtimes or {}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    nothing = {"method": "none", "options": {}, "steps": [], "visual_tokens": 4, "handed_over": 4, "keep": 4}
    made = manifest.Manifest(
        name="stub",
        model=manifest.Model(model_type="llava", source="demo", revision=None, weights={}),
        reduction=manifest.Reduction(
            **nothing, cached=[4], positions="original"
        ),
        decoder=manifest.Decoder(layers=1, kv_heads=1, head_dim=2, hidden_size=2, vocab_size=2, context=8),
        tokens=manifest.Tokens(image="<image>", image_id=1, bos=None, eos=None, eos_ids=[0]),
        profiles=[profiles.square(2, (2, 2), aside=0, patch_size=1)],
        layout=profiles.LayoutRecord(rule="square"), precision="fp32", target=target, opset=18, ir_version=10, graphs={}, tools={},
        created="2026-01-02T03:04:05+00:00",
        files={name: file_of(content, mtimes.get(name)) for name, content in contents.items()},
    )  # fmt: skip
    made.save(folder)
    return folder


def write_engine(bundle, target="rtx", content=b"plan"):
    """An engine of a bundle, with its build.json."""
    folder = bundle / engines.FOLDER / target
    folder.mkdir(parents=True)
    (folder / "model.engine").write_bytes(content)
    engine = engines.Engine(
        file="model.engine", sha256=sha256(content).hexdigest(), size=len(content), sources={}, profiles=[],
        seconds=1.0, peak_bytes=1,
    )  # fmt: skip
    engines.Build(
        target=target, runtime="tensorrt_rtx", version="1.7", platform="linux-x86_64", compute_capabilities=["8.9"],
        options=engines.Options(), engines={"model": engine}, created="2026-01-02T03:04:05+00:00",
    ).save(folder)  # fmt: skip
    return folder
