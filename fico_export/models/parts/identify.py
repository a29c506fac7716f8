"""What a file or folder is that is no checkpoint to read: named from the names of its files, with its own way to one.

Signs are data, first match wins. Nothing but small JSON files and the first bytes of a file is read.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from fico_export import documents
from fico_export.errors import CheckpointError, ConfigError
from fico_export.models.parts import layouts

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
SMALL = (CONFIG, ADAPTER)
"""Files of a hub repository that say what it is."""

_MOST_FILES = 10_000  # of a folder, that are looked at
_MOST_NAMED = 5
_AGAIN = "download it again"
_PARENT = "give the checkpoint's folder, the one with config.json"
_ORIGIN = "give --model the checkpoint in transformers' layout that it was made from"


@dataclass(frozen=True)
class Sign:
    """Names of files, what they are signs of, and how to get what is read from it."""

    patterns: tuple[str, ...]
    what: str
    fix: str
    but: tuple[str, ...] = ()

    def found(self, names: list[str]) -> str | None:
        """The first name that is a sign."""
        return next((n for n in names if _any(n, self.patterns) and not _any(n, self.but)), None)


def resave(model: str = "AutoModelForImageTextToText") -> str:
    """A command that saves what transformers reads of IN as safetensors to OUT, with its texts."""
    return (
        f'`python -c "from transformers import {model} as M, AutoProcessor as P; '
        "M.from_pretrained('IN').save_pretrained('OUT'); P.from_pretrained('IN').save_pretrained('OUT')\"` "
        "(IN: that folder, OUT: a new one)"
    )


_NOT_PICKLES = (
    "training_args.*",
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "openvino_*",
    "ggml-*",
)
"""Files called like pickled weights that are none."""

_PICKLES = Sign(
    ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle"),
    "pickled weights, which can run code when loaded and are not read",
    f"convert them on a machine you trust: {resave()}, then give --model OUT",
    but=_NOT_PICKLES,
)
_TRAINING = Sign(
    ("zero_to_fp32.py", "*.distcp", "global_step*", "pytorch_model_fsdp*", "*zero_pp_rank*", "mp_rank_*"),
    "the state of a training run in pieces",
    "make one model of it with the tool that wrote it (DeepSpeed: `python zero_to_fp32.py . OUT --safe_serialization`), "
    "and put the checkpoint's config.json and tokenizer beside it",
)
_OTHER_FORMATS = (
    Sign(("*.gguf", "ggml-*", "*.ggml*"), "a GGUF model of llama.cpp", _ORIGIN),
    Sign(("*.npz",), "weights of MLX", _ORIGIN),
    Sign(("*.onnx", "*.onnx_data", "onnx"), "an ONNX export: graphs, no weights to export from", _ORIGIN),
    Sign(("openvino_*.xml", "openvino_*.bin"), "an OpenVINO export", _ORIGIN),
    Sign(("*.engine", "*.plan", "rank*.engine"), "a TensorRT engine", _ORIGIN),
    Sign(("*.h5", "saved_model.pb", "*.tflite"), "weights of TensorFlow", _ORIGIN),
    Sign(("*.msgpack",), "weights of Flax", _ORIGIN),
    Sign(("*.mlpackage", "*.mlmodel", "*.mlmodelc"), "a Core ML model", _ORIGIN),
    Sign(("*.nemo",), "a NeMo archive", _ORIGIN),
    Sign(("*.pte",), "an ExecuTorch program", _ORIGIN),
    Sign(("*.llamafile",), "a llamafile", _ORIGIN),
)
_ARCHIVES = Sign(
    ("*.zip", "*.tar", "*.tar.*", "*.tgz", "*.7z", "*.rar", "*.zst"),
    "an archive",
    "unpack it and give the folder with config.json",
)
_NO_MODEL = (
    Sign(("model_index.json",), "a pipeline of diffusers, which makes images", "give --model a vision-language model"),
    Sign(("params.json", "consolidated*"), "a checkpoint in the layout of its authors (params.json)", _ORIGIN),
    Sign(("mm_projector.bin",), "the projector of a LLaVA in training, not a whole model",
         "give the folder of the trained model"),
)  # fmt: skip


def file(path: Path) -> ConfigError:
    """The error for a file that was given in the place of a checkpoint's folder."""
    if not path.is_file():
        return ConfigError(f"{path} is neither a folder nor a file", fix=_PARENT)
    if _starts_with(path, b"GGUF"):
        return ConfigError(f"{path} is a file: a GGUF model of llama.cpp", fix=_ORIGIN)
    if path.name.endswith((".safetensors", ".json", ".jinja")):
        whole = (path.parent / CONFIG).is_file()
        fix = f"--model {path.parent}" if whole else _PARENT
        return ConfigError(f"{path} is a file of a checkpoint, not its folder", fix=fix)
    for sign in (_ARCHIVES, *_OTHER_FORMATS, _PICKLES):
        if sign.found([path.name]):
            return ConfigError(f"{path} is a file: {sign.what}", fix=sign.fix)
    return ConfigError(f"{path} is a file", fix=_PARENT)


def no_config(folder: Path) -> CheckpointError:
    """The error for a folder without config.json."""
    names = _names(folder)
    if (error := _adapter(folder, names)) is not None:
        return error
    for sign in _NO_MODEL:
        if sign.found(names):
            return CheckpointError(f"{folder} is {sign.what}", fix=sign.fix)
    if (inner := _inner(folder, names)) is not None:
        return inner
    what = f"{folder} has no config.json"
    if not any(fnmatch(name, "*.safetensors") for name in names):
        for sign in (_TRAINING, _PICKLES, *_OTHER_FORMATS, _ARCHIVES):
            if (found := sign.found(names)) is not None:
                return CheckpointError(f"{what}; its {found!r} is {_article(sign.what)}", fix=sign.fix)
    return CheckpointError(
        what,
        fix="point --model at the checkpoint folder itself: config.json lies beside the .safetensors files",
    )


def no_weights(folder: Path) -> CheckpointError:
    """The error for a folder that has a config.json, and no safetensors under a name that transformers reads."""
    names = _names(folder)
    if "manifest.json" in names and "onnx" in names:
        return CheckpointError(
            f"{folder} is a bundle, which was exported already",
            fix=f"run it: `fico run {folder}`; to export again, give the checkpoint that it was made from",
        )
    if (error := _adapter(folder, names) or _misnamed(folder, names)) is not None:
        return error
    for sign in (*_NO_MODEL, _TRAINING, _PICKLES, *_OTHER_FORMATS):
        if (found := sign.found(names)) is not None:
            return CheckpointError(
                f"{folder} holds no model.safetensors; its {found!r} is {_article(sign.what)}", fix=sign.fix
            )
    return CheckpointError(
        f"{folder} holds no model.safetensors and no model.safetensors.index.json",
        fix="point --model at the folder with config.json and the .safetensors files; "
        "`hf download OWNER/NAME --local-dir DIR` fetches them",
    )


def beside_weights(folder: Path) -> CheckpointError | None:
    """The error for an adapter that lies beside the weights: transformers applies it, the export would leave it out."""
    if not (folder / ADAPTER).is_file():
        return None
    return CheckpointError(
        f"{folder} holds an adapter (adapter_config.json) beside its weights, which the export would leave out",
        fix="merge it into the weights; if that was done already, move adapter_config.json and adapter_model.* out of the folder",
    )


def _adapter(folder: Path, names: list[str]) -> CheckpointError | None:
    if not any(fnmatch(name, "adapter_config.json") or fnmatch(name, "adapter_model.*") for name in names):
        return None
    content = documents.read(folder / ADAPTER, error=CheckpointError, fix=_AGAIN) if ADAPTER in names else {}
    content = content if isinstance(content, dict) else {}
    base, kind = _word(content.get("base_model_name_or_path")), _word(content.get("peft_type"))
    what = f"{folder} is an adapter ({kind or 'LoRA'}){f' for {base}' if base else ''}, not a model"
    if (
        "non_lora_trainables.bin" in names
        or layouts.is_authors_name(base)
        or layouts.is_authors_class(content)
    ):
        return CheckpointError(
            f"{what}, of a LLaVA in its authors' layout",
            fix="merge it with scripts/merge_lora_weights.py of https://github.com/haotian-liu/LLaVA, and convert the result with "
            "transformers' convert_llava_weights_to_hf.py",
        )
    named = base or "BASE"
    return CheckpointError(
        what,
        fix="merge it into its base model where peft is installed (`pip install peft`): "
        '`python -c "from transformers import AutoModelForImageTextToText as M, AutoProcessor as P; '
        f"from peft import PeftModel as A; A.from_pretrained(M.from_pretrained('{named}'), 'IN').merge_and_unload()"
        f".save_pretrained('OUT'); P.from_pretrained('{named}').save_pretrained('OUT')\"`, then give --model OUT",
    )


def _misnamed(folder: Path, names: list[str]) -> CheckpointError | None:
    """Safetensors under names that transformers does not read."""
    index = next((name for name in names if fnmatch(name, "model.safetensors.index.*.json")), None)
    if index is not None:
        return CheckpointError(
            f"{folder} holds weights of a variant: {index!r}, and no model.safetensors",
            fix=f"`ln -s {shlex.quote(index)} {shlex.quote(str(folder / 'model.safetensors.index.json'))}`",
        )
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_symlink():
            return CheckpointError(
                f"{folder / name} is a link to a file that is gone", fix="download the checkpoint again"
            )
    files = [name for name in names if name.endswith(".safetensors")]
    if not files:
        return None
    if any(fnmatch(name, "*-of-*.safetensors") for name in files):
        return CheckpointError(
            f"{folder} holds shards such as {files[0]!r}, and no model.safetensors.index.json that lists them",
            fix="download the index too: `hf download OWNER/NAME model.safetensors.index.json --local-dir "
            f"{shlex.quote(str(folder))}`",
        )
    if files[0].startswith("consolidated"):
        return None  # the authors' layout
    return CheckpointError(
        f"{folder} holds {files[0]!r}, and no model.safetensors, the name that transformers reads",
        fix=f"if it holds the whole model: `ln -s {shlex.quote(files[0])} {shlex.quote(str(folder / 'model.safetensors'))}`",
    )


def _inner(folder: Path, names: list[str]) -> CheckpointError | None:
    """The error for a folder one or two levels above that of a checkpoint, or of several."""
    cached = [name for name in names if name.startswith("models--")]
    if cached:
        ids = [name.removeprefix("models--").replace("--", "/") for name in cached[:_MOST_NAMED]]
        return CheckpointError(f"{folder} is a cache of the hub", fix=f"--model {' or '.join(ids)}")
    found = [folder / name for name in names if (folder / name / CONFIG).is_file()]
    if not found:
        found = [p.parent for p in islice(folder.glob(f"*/*/{CONFIG}"), _MOST_FILES) if p.is_file()]
    if not found:
        adapters = [folder / name for name in names if (folder / name / ADAPTER).is_file()]
        return _adapter(adapters[0], _names(adapters[0])) if adapters else None
    shown = [shlex.quote(str(path)) for path in sorted(found)[:_MOST_NAMED]]
    if folder.name.startswith("models--"):
        main = folder / "refs" / "main"
        current = main.read_text(errors="replace").strip() if main.is_file() else ""
        shown = [path for path in shown if current and current in path] or shown
        return CheckpointError(
            f"{folder} is the hub's cache of a model; the checkpoint is in snapshots",
            fix=f"--model {shown[0]}",
        )
    count = "a folder in it has one" if len(found) == 1 else f"{len(found)} folders in it have one"
    return CheckpointError(f"{folder} has no config.json; {count}", fix="--model " + " or ".join(shown))


def _word(value: object) -> str:
    """A name from a stranger's file, or nothing where it holds what has no place in a command to copy."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w./-]{1,200}", value, re.ASCII) else ""


def _names(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, _MOST_FILES))
    except OSError:
        return []


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as opened:
            return opened.read(len(magic)) == magic
    except OSError:
        return False


def _article(what: str) -> str:
    """The sign's words after "is": "pickled weights" need "a file of"."""
    return what if what.startswith(("a ", "an ", "the ")) else f"a file of {what}"
