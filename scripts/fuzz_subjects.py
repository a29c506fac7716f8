"""What `fuzz.py` spoils and has read: one line a subject. Not a script."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_mutators as mutate
import numpy as np
from PIL import Image

import fico_export
from fico_export import models
from fico_export.bundle import archive
from fico_export.bundle.recipe import Recipe
from fico_export.bundle.unpack import unpack
from fico_export.demo.checkpoint import write_random_checkpoint
from fico_export.logs.read import read_logs
from fico_export.runtime.inputs.images import load_image
from fico_export.runtime.inputs.prompt import Message, PromptFormatter
from fico_export.runtime.vlm import Vlm

MANIFEST = "manifest.json"
Mutator = Callable[[random.Random, bytes], bytes]
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
}
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Subject:
    """Files that are read together.

    Attributes:
        name: of the subject.
        write: writes the whole files to a folder.
        files: name in the folder → how to spoil it; one of them is spoilt in each case.
        read: reads the folder as a command would.
        weight: how often it is chosen.
    """

    name: str
    write: Callable[[Path], None]
    files: dict[str, Mutator]
    read: Callable[[Path], object]
    weight: int = 1

    def spoil(self, rng: random.Random, folder: Path) -> None:
        """Spoil one of the files that are there."""
        there = [name for name in self.files if (folder / name).is_file()]
        name = rng.choice(there)
        (folder / name).write_bytes(self.files[name](rng, (folder / name).read_bytes()))
        if (folder / MANIFEST).is_file() and name != MANIFEST:
            _vouch(folder, name)


def _vouch(folder: Path, name: str) -> None:
    """Give a spoilt file its right hash: who makes a bundle makes its manifest."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content = (folder / name).read_bytes()
    manifest["files"][name] |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


# ---- whole files


def _checkpoint(folder: Path) -> None:
    write_random_checkpoint(folder, vision=_VISION, text=_TEXT)


@functools.cache
def _exported() -> Path:
    work = Path(tempfile.mkdtemp(prefix="fico-fuzz-"))
    _checkpoint(work / "checkpoint")
    return fico_export.export(
        work / "checkpoint", keep=16, method="uniform", out=work / "bundle", copy_weights=True, verify=False
    )


def _bundle(folder: Path) -> None:
    for path in _exported().rglob("*"):
        if path.is_file():
            (folder / path.relative_to(_exported())).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(_exported())).write_bytes(path.read_bytes())


def _archive(folder: Path) -> None:
    archive.pack(_exported(), folder / "bundle.tar")


def _images(folder: Path) -> None:
    y, x = np.mgrid[0:40, 0:60]
    image = Image.fromarray(np.stack([x * 4, y * 6, (x * y) % 256], -1).astype("uint8"))
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp"):
        image.save(folder / f"image.{suffix}")
    Image.fromarray((x * y * 20).astype("uint16")).save(folder / "deep.png")
    Image.fromarray((x / 7.0).astype("float32")).save(folder / "float.tif")
    image.convert("P").save(folder / "palette.png")


def _logs(folder: Path) -> None:
    rows = [{"startEnqMs": i, "endEnqMs": i + 0.5, "startH2dMs": i, "endH2dMs": i + 0.2, "startComputeMs": i + 1, "endComputeMs": i + 6,
             "startD2hMs": i + 7, "endD2hMs": i + 7.1, "h2dMs": 0.2, "computeMs": 5.0, "d2hMs": 0.1, "latencyMs": 5.3} for i in range(3)]  # fmt: skip
    layers = [{"name": f"vision_tower.encoder.layers.{i}.mlp.fc1/MatMul_{i}", "timeMs": 20.0, "averageMs": 0.1, "medianMs": 0.1, "percentage": 50.0} for i in range(2)]  # fmt: skip
    nodes = [{"cat": "Node", "pid": 1, "tid": 1, "dur": 30, "ts": 10 * i, "ph": "X", "name": f"vision_tower/MatMul_{i}_kernel_time",
              "args": {"op_name": "MatMul", "node_index": str(i)}} for i in range(3)]  # fmt: skip
    nodes.append(
        {"cat": "Session", "pid": 1, "tid": 1, "dur": 90, "ts": 0, "ph": "X", "name": "model_run", "args": {}}
    )
    for name, content in (
        ("times.json", rows),
        ("profile.json", [{"count": 200}, *layers]),
        ("ort.json", nodes),
    ):
        (folder / name).write_text(json.dumps(content))


def _recipe(folder: Path) -> None:
    text = 'description = "a test"\nmodel = "demo"\nmethod = "divprune"\nkeep = 64\nprecision = "fp16"\ntarget = "portable"\nmax_context = 512\n'
    (folder / "recipe.toml").write_text(text + 'positions = "original"\n[settings]\nlam = 0.5\n')


# ---- reading


def _load_model(folder: Path) -> None:
    model = models.load(folder)
    texts = model.files()
    PromptFormatter(texts.tokenizer, texts.chat_template, model.tokens).encode(
        [Message("user", "What is it?", 1)]
    )


def _plan(folder: Path) -> None:
    models.describe(folder).plan("uniform", 16, {})


def _open_bundle(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vlm = Vlm(folder, backend="ort-cpu", lazy=True)
    vlm.formatter.encode([Message("user", "What is it?", 1)])
    vlm.preprocess(Image.new("RGB", (30, 20)))
    vlm.embed([1, 2])


def _unpack(folder: Path) -> None:
    unpack(folder / "bundle.tar", folder / "unpacked")


def _load_images(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(folder.iterdir()):
            load_image(path)


def _read_logs(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_logs([path])


def _render(folder: Path) -> None:
    model = models.load(folder)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    formatter = PromptFormatter(model.files().tokenizer, template, model.tokens)
    formatter.encode(
        [Message("user", "What is it?", 1), Message("assistant", "A cat."), Message("user", "Where?")]
    )


def _bytes_of(*names: str) -> dict[str, Mutator]:
    return dict.fromkeys(names, mutate.spoil_bytes)


_JSON = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_IMAGES = tuple(f"image.{suffix}" for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp"))
SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("checkpoint", _checkpoint, dict.fromkeys(_JSON, mutate.spoil_json), _load_model, weight=5),
        Subject("config", _checkpoint, {"config.json": mutate.spoil_json}, _plan, weight=3),
        Subject("weights", _checkpoint, _bytes_of("model.safetensors"), _load_model),
        Subject("template", _checkpoint, {"chat_template.jinja": mutate.spoil_template}, _render, weight=2),
        Subject("manifest", _bundle, {"manifest.json": mutate.spoil_json}, _open_bundle, weight=4),
        Subject("bundle", _bundle, {name: mutate.spoil_json for name in _JSON if name != "processor_config.json"}, _open_bundle),
        Subject("archive", _archive, {"bundle.tar": mutate.spoil_archive}, _unpack, weight=3),
        Subject("image", _images, _bytes_of(*_IMAGES, "deep.png", "float.tif", "palette.png"), _load_images, weight=3),
        Subject("log", _logs, dict.fromkeys(("times.json", "profile.json", "ort.json"), mutate.spoil_json), _read_logs, weight=2),
        Subject("recipe", _recipe, {"recipe.toml": mutate.spoil_toml}, lambda folder: Recipe.load(folder / "recipe.toml")),
    )
}  # fmt: skip
