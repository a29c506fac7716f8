"""What is damaged, and what reads it: one class a kind of file."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_mutators
import numpy as np
from PIL import Image

import fico_export
from fico_export import api, calibration, documents, models, tokenizer
from fico_export.bundle import archive
from fico_export.bundle.recipe import Recipe
from fico_export.demo.checkpoint import write_random_checkpoint
from fico_export.devices import catalog
from fico_export.errors import ConfigError
from fico_export.logs.read import read_logs
from fico_export.logs.stages import attribute
from fico_export.plan import advice
from fico_export.plan.planner import Request
from fico_export.profile.record import Run
from fico_export.report.evidence import evaluation
from fico_export.report.kept import patch_size
from fico_export.runtime.images import load_image
from fico_export.runtime.preprocess import ImageProcessor
from fico_export.runtime.prompt import Message, PromptFormatter
from fico_export.runtime.template import ChatTemplate

NAMES = (
    "checkpoint", "plan", "bundle", "archive", "image", "log", "template", "tokenizer", "processor", "recipe", "record", "calibration",
)  # fmt: skip
_TINY_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
_TINY_TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A kind of file.

    Attributes:
        name: of the kind.
        write: puts good files into a folder, and says which may be damaged.
        read: what is done with the folder.
    """

    name: str
    write: Callable[[Path], list[Path]]
    read: Callable[[Path, random.Random], Any]


class Subjects:
    """The kinds of files asked for, made once and copied for each case.

    Args:
        originals: folder for the good files.
        names: kinds that are wanted.
        bundle: a good bundle, where there is one already.
    """

    def __init__(self, originals: Path, names: Sequence[str], bundle: Path | None = None) -> None:
        self._originals = originals
        self._checkpoint = originals / "checkpoint"
        write_random_checkpoint(self._checkpoint, vision=_TINY_VISION, text=_TINY_TEXT)
        if {"bundle", "archive"} & set(names):
            self._bundle = bundle or fico_export.export(
                self._checkpoint, 4, method="uniform", out=originals / "bundle", verify=False
            )
        table = {
            name: Subject(name, getattr(self, f"_write_{name}"), getattr(self, f"_read_{name}"))
            for name in names
        }
        self._subjects = [table[name] for name in names]

    def pick(self, number: int) -> Subject:
        """The subject of a case."""
        return self._subjects[number % len(self._subjects)]

    # ---- checkpoints

    def _write_checkpoint(self, folder: Path) -> list[Path]:
        shutil.copytree(self._checkpoint, folder, dirs_exist_ok=True)
        return sorted(path for path in folder.iterdir() if path.is_file())

    def _read_checkpoint(self, folder: Path, chance: random.Random) -> None:
        checkpoint = api.open_checkpoint(str(folder), None)
        texts = checkpoint.files()
        formatter = PromptFormatter(texts.tokenizer, texts.chat_template, checkpoint.tokens)
        formatter.encode([Message("user", "What is it?", 1)], 4)
        ImageProcessor.from_config(texts.preprocessor)(Image.new("RGB", (30, 20)))
        for name in list(checkpoint.shapes)[:3]:
            checkpoint.checkpoint.load(name)

    def _write_plan(self, folder: Path) -> list[Path]:
        shutil.copy(self._checkpoint / "config.json", folder)
        return [folder / "config.json"]

    def _read_plan(self, folder: Path, chance: random.Random) -> None:
        described = models.describe(folder)
        device = catalog.get(chance.choice(sorted(catalog.load())))
        advice.plan(
            described, Request("ficoco-v", keep=4, precision="fp16", text_tokens=8, new_tokens=4), device
        )

    def _write_processor(self, folder: Path) -> list[Path]:
        shutil.copy(self._checkpoint / "preprocessor_config.json", folder)
        return [folder / "preprocessor_config.json"]

    def _read_processor(self, folder: Path, chance: random.Random) -> None:
        text = (folder / "preprocessor_config.json").read_bytes().decode("utf-8", "replace")
        content = documents.parse_object(text, "preprocessor_config.json", fix="use another")
        processor = ImageProcessor.from_config(content)
        for size in ((30, 20), (1, 3000)):
            processor(Image.new("RGB", size))
            processor.crop_box(*size)

    def _write_tokenizer(self, folder: Path) -> list[Path]:
        shutil.copy(self._checkpoint / "tokenizer.json", folder)
        return [folder / "tokenizer.json"]

    def _read_tokenizer(self, folder: Path, chance: random.Random) -> None:
        text = documents.read_text(folder / "tokenizer.json", fix="use another")
        found = tokenizer.read(text, "tokenizer.json", fix="use another")
        ids = found.encode("What is it? é🐈 " * 20, add_special_tokens=True)
        found.tokenizer.decode(ids)

    def _write_calibration(self, folder: Path) -> list[Path]:
        Image.new("RGB", (20, 30), "red").save(folder / "a.png")
        lines = [
            json.dumps({"image": "a.png", "prompt": prompt})
            for prompt in ("What is it?", "é", "Which colour?")
        ]
        (folder / "prompts.jsonl").write_text("\n".join(lines))
        return [folder / "prompts.jsonl"]

    def _read_calibration(self, folder: Path, chance: random.Random) -> None:
        calibration.read_prompts(folder / "prompts.jsonl", api.open_checkpoint(str(self._checkpoint), None))

    # ---- bundles

    def _write_bundle(self, folder: Path) -> list[Path]:
        shutil.copytree(self._bundle, folder / "bundle", dirs_exist_ok=True)
        return sorted(
            path
            for path in (folder / "bundle").rglob("*")
            if path.is_file() and path.suffix in (".json", ".jinja")
        )

    def _read_bundle(self, folder: Path, chance: random.Random) -> None:
        bundle = folder / "bundle"
        if chance.random() < 0.8:
            fuzz_mutators.hash_again(bundle)
        manifest_of(bundle)
        vlm = fico_export.load(bundle)
        patch_size(bundle, vlm.manifest)
        vlm.generate("What is it?", [Image.new("RGB", (30, 20))], max_new_tokens=2)

    def _write_archive(self, folder: Path) -> list[Path]:
        packed = self._originals / "bundle.tar"
        if not packed.exists():
            archive.pack(self._bundle, packed)
        shutil.copy(packed, folder)
        return [folder / "bundle.tar"]

    def _read_archive(self, folder: Path, chance: random.Random) -> None:
        if chance.random() < 0.6:
            shutil.copy(self._originals / "bundle.tar", folder)
            fuzz_mutators.rewrite_tar(folder / "bundle.tar", chance)
        archive.unpack(folder / "bundle.tar", folder / "out")

    # ---- images

    def _write_image(self, folder: Path) -> list[Path]:
        pixels = np.random.default_rng(0).integers(0, 255, (24, 31, 3), dtype=np.uint8)
        forms = ("png", "jpeg", "webp", "gif", "bmp", "tiff")
        for form in forms:
            held = io.BytesIO()
            Image.fromarray(pixels).save(held, format=form)
            (folder / f"image.{form}").write_bytes(held.getvalue())
        return [folder / f"image.{form}" for form in forms]

    def _read_image(self, folder: Path, chance: random.Random) -> None:
        sources = [source for path in sorted(folder.iterdir()) for source in (path, path.read_bytes())]
        _each(sources, load_image)

    # ---- logs and records

    def _write_log(self, folder: Path) -> list[Path]:
        for name, text in _logs().items():
            (folder / name).write_text(text)
        return sorted(folder.iterdir())

    def _read_log(self, folder: Path, chance: random.Random) -> None:
        def attributed(path: Path) -> None:
            found = read_logs([path])
            for profile in found.profiles:
                attribute(profile, next(iter(found.engines), None))

        _each(sorted(folder.iterdir()), attributed)

    def _write_record(self, folder: Path) -> list[Path]:
        spread = dict.fromkeys(("median", "mean", "p10", "p90", "p99", "least", "most"), 1.0)
        bundle = {
            "bundle": "b", "name": "b", "method": "none", "keep": 4, "visual_tokens": 4, "precision": "fp32", "target": "portable",
            "backend": "ort-cpu", "prompt_tokens": 9, "new_tokens": 2, "stages": {"vision": spread}, "ttft": spread, "tpot": None,
            "end_to_end": spread, "coverage": 1.0, "tokens_per_second": None,
        }  # fmt: skip
        run = {
            "schema_version": 1, "created": "2026-01-01", "machine": {"name": "m", "system": "s", "versions": {}}, "iterations": 1,
            "warm_up": 0, "prompt": "?", "bundles": [bundle], "ratios": {"vision": [1.0]},
        }  # fmt: skip
        right = [{"method": "none", "keep": None, "policy": "original", "right": {"colour": [1, 0, 1]}}]
        (folder / "profile.json").write_text(json.dumps(run))
        (folder / "results.json").write_text(json.dumps(right))
        return sorted(folder.iterdir())

    def _read_record(self, folder: Path, chance: random.Random) -> None:
        Run.load(folder / "profile.json")
        for record in evaluation(folder / "results.json"):
            assert record.accuracy <= 1

    # ---- recipes and templates

    def _write_recipe(self, folder: Path) -> list[Path]:
        text = 'description = "d"\nmodel = "demo"\nmethod = "ficoco-v"\nkeep = 64\nprecision = "int4"\nblock = 32\n\n[settings]\nlam = 0.5\n'
        (folder / "recipe.toml").write_text(text)
        return [folder / "recipe.toml"]

    def _read_recipe(self, folder: Path, chance: random.Random) -> None:
        Recipe.load(folder / "recipe.toml")

    def _write_template(self, folder: Path) -> list[Path]:
        (folder / "template.jinja").write_text((self._checkpoint / "chat_template.jinja").read_text())
        return [folder / "template.jinja"]

    def _read_template(self, folder: Path, chance: random.Random) -> None:
        text = (folder / "template.jinja").read_bytes().decode("utf-8", "replace")
        template = ChatTemplate(text + (program(chance, 3) if chance.random() < 0.8 else ""))
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a <b>"}]}
        try:
            template.render(messages=[message] * 3, bos_token="<s>", add_generation_prompt=True)
        except (ConfigError, MemoryError, RecursionError):
            raise
        except Exception as error:  # a template's own mistakes are for who renders it
            raise ConfigError(str(error) or type(error).__name__, fix="correct the template") from error


def _each(sources: Sequence[Any], read: Callable[[Any], Any]) -> None:
    """Read all of them, whether one is refused or not; then say that one was."""
    refused: list[ConfigError] = []
    for source in sources:
        with suppressed(refused):
            read(source)
    if refused:
        raise refused[0]


@contextmanager
def suppressed(refused: list[ConfigError]) -> Iterator[None]:
    """Keep a refusal for later."""
    try:
        yield
    except ConfigError as error:
        refused.append(error)


def program(chance: random.Random, depth: int) -> str:
    """A template that grows and runs as it happens."""
    small = (
        "'ab'",
        "x",
        "[1, 2]",
        "messages",
        "7",
        "{'a': x}",
        "(x, x)",
        "10 ** 9",
        "'{:>9}'",
        "'%9d'",
        "range(100000)",
        "none",
    )

    def value(levels: int) -> str:
        if levels == 0:
            return chance.choice(small)
        a, b = value(levels - 1), value(levels - 1)
        forms = (
            f"({a} ~ {b})", f"({a} + {b})", f"({a} * {b})", f"({a} % {b})", f"({a} ** {b})", f"[{a}, {b}]", f"({a} | list)",
            f"({a} | replace('a', {b}))", f"({a} | join({b}))", f"({a} | center({b}))", f"({a} | tojson(indent={b}))", f"({a} | string)",
            f"({a} | batch({b}) | list)", f"({a} | map('center', {b}) | list)", f"({a} | sum(start={b}))", f"({a}.format({b}))",
            f"({a} | indent({b}))", f"({a} | pprint)", f"({a} | sort)", f"({a} | unique | list)", f"dict(a={a}, b={b})", f"({a} | urlize)",
            f"({a} | wordwrap({b}))", f"({a} | length)", f"({a} | format({b}))", f"({a} == {b})", f"({a} in {b})", f"({a} | striptags)",
        )  # fmt: skip
        return chance.choice(forms)

    def block(levels: int) -> str:
        if levels == 0:
            return chance.choice(
                (f"{{% set ns.x = {value(2)} %}}", f"{{{{ {value(2)} }}}}", "{% set x = ns.x %}", "words")
            )
        inner = block(levels - 1) + block(levels - 1)
        return chance.choice(
            (
                f"{{% for i in range({chance.choice((3, 60, 100000))}) %}}{inner}{{% endfor %}}",
                f"{{% set x %}}{inner}{{% endset %}}",
                f"{{% if {value(1)} %}}{inner}{{% endif %}}",
                f"{{% macro m(x) %}}{inner}{{{{ m(x) }}}}{{% endmacro %}}{{{{ m({value(1)}) }}}}",
                f"{{% filter {chance.choice(('upper', 'trim', 'escape', 'replace(1, 2)'))} %}}{inner}{{% endfilter %}}",
            )
        )

    return "{% set ns = namespace(x='ab') %}{% set x = 'ab' %}" + block(depth)


def manifest_of(bundle: Path) -> None:
    """Read a manifest and look through what it lists."""
    from fico_export.bundle.manifest import Manifest

    archive.contents(bundle, Manifest.load(bundle))


def _logs() -> dict[str, str]:
    """A file of each kind, of two runs."""
    rows = [
        {"startEnqMs": i, "endEnqMs": i + 0.5, "h2dMs": 0.2, "computeMs": 5.0, "d2hMs": 0.1, "latencyMs": 5.3}
        for i in range(2)
    ]
    node = "vision_tower.encoder.layers.1.mlp.fc1/MatMul_9"
    layers = [
        {"count": 2},
        *({"name": f"{node}{i}", "timeMs": 2.0, "averageMs": 1.0, "medianMs": 1.0} for i in range(3)),
    ]
    tensor = {
        "Name": "pixel_values",
        "Dimensions": [1, 3, 8, 8],
        "Format/Datatype": "Row major linear FP16 format",
    }
    info = {"Layers": [{"Name": node, "LayerType": "gemm", "Inputs": [tensor], "Outputs": [tensor], "TacticName": "t",
            "Metadata": f"[ONNX Layer: {node}]"}], "Bindings": [tensor]}  # fmt: skip
    events = [{"cat": "Session", "name": "model_run", "dur": 9, "ts": 1, "ph": "X"}] + [
        {"cat": "Node", "name": f"{node}_kernel_time", "dur": 3, "ts": 2 + 3 * i, "ph": "X", "args": {"op_name": "MatMul"}} for i in range(3)
    ]  # fmt: skip
    said = "min = 1 ms, max = 2 ms, mean = 1.5 ms, median = 1.5 ms, percentile(90%) = 2 ms"
    plain = (
        "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b26] # trtexec --onnx=a.onnx --shapes='a:1x3'\n"
        "[01/01/2026-00:00:00] [I] Selected Device: Orin\n[01/01/2026-00:00:00] [I] Timing trace has 2 queries over 1 s\n"
        "[01/01/2026-00:00:00] [I] === Profile (2 iterations ) ===\n[01/01/2026-00:00:00] [I]    Time(ms)  Avg.(ms)  Median(ms)  Time(%)  Layer\n"
        f"[01/01/2026-00:00:00] [I]  2.0  1.0  1.0  100.0  {node}\n[01/01/2026-00:00:00] [I] === Performance summary ===\n"
        f"[01/01/2026-00:00:00] [I] Throughput: 100 qps\n[01/01/2026-00:00:00] [I] Latency: {said}\n"
        f"[01/01/2026-00:00:00] [I] GPU Compute Time: {said}\n"
    )
    return {"times.json": json.dumps(rows), "profile.json": json.dumps(layers), "layers.json": json.dumps(info, indent=1),
            "events.json": json.dumps(events), "plain.log": plain}  # fmt: skip
