"""The results section of docs/gpu.md, made from what `gpu_day.py` measured; the page's own text stays.

Not a script: `gpu_day.py --docs FILE` calls it. The results are kept beside the page as gpu.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fico_export import documents
from fico_export.errors import ConfigError

START, STOP = "<!-- results -->", "<!-- end of results -->"
NOT_YET = "Nothing has been measured on a GPU yet."
TITLES = {"ort": "ONNX Runtime CUDA", "rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}


def write(results: Path, docs: Path) -> None:
    """Put results into docs/gpu.md, and keep them as docs/gpu.json.

    Raises:
        ConfigError: they cannot be read, or are a rehearsal's.
    """
    content = documents.read_object(results, fix="give the file that scripts/gpu_day.sh wrote")
    if content.get("rehearsal") is not False:
        raise ConfigError(
            f"{results} is no measurement on a GPU{': it is a rehearsal' if content.get('rehearsal') else ''}",
            fix="run scripts/gpu_day.sh without --rehearse on a machine with a GPU",
        )
    page = docs / "gpu.md"
    page.write_text(placed(page.read_text(encoding="utf-8"), section(content)), encoding="utf-8")
    (docs / "gpu.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def placed(page: str, text: str) -> str:
    """The page with its results replaced."""
    before, _, rest = page.partition(START)
    return f"{before}{START}\n\n{text}\n\n{STOP}{rest.partition(STOP)[2]}"


def section(content: dict[str, Any] | None) -> str:
    """The results as Markdown; None for none."""
    if content is None:
        return NOT_YET
    machine, gpu = content["machine"], content.get("gpu") or {}
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    card = f"{gpu.get('name', machine['name'])}, compute capability {gpu.get('compute_capability', '–')}"
    model = content["size"] if content["size"] == "demo" else f"{content['size']}, random weights"
    measured = f"{content['created'][:10]}, commit {content['revision'] or '–'}"
    lines = [f"{card}, driver {gpu.get('driver', '–')}; {versions}; {measured}. Model: {model}."]
    for part in content["parts"]:
        if part["part"] != "model":
            lines += ["", f"### {TITLES.get(part['part'], 'Tests')}", "", *_part(part)]
    return "\n".join(lines)


def _part(part: dict[str, Any]) -> Iterator[str]:
    if part["skipped"]:
        yield f"Not run: {part['skipped']}."
        return
    broken: list[str] = []
    for step in part["steps"]:
        numbers = step.get("numbers")
        if step["outcome"] != "done":
            broken.append(f"`{step['step']}` {step['outcome']}: {_short(step.get('error', ''))}")
        if step["step"] == "pytest" and numbers:
            yield ", ".join(f"{count} {outcome}" for outcome, count in numbers.items()) + "."
        if step["outcome"] == "done" and step["step"] == "profile":
            yield from _table(numbers)
            yield ""
        if numbers and step["step"].startswith("batch of "):
            yield from map(_batch, numbers)
            yield ""
    yield from broken
    yield from _commands(part["steps"])


def _table(profile: dict[str, Any]) -> Iterator[str]:
    """A row for each bundle, and a last one with the ratios of the second to the first."""
    yield "| visual tokens | vision, ms | first token, ms | tokens/s |"
    yield "| --- | ---: | ---: | ---: |"
    bundles = profile["bundles"]
    for b in bundles:
        speed = b["tokens_per_second"]
        yield (
            f"| {b['keep']} of {b['visual_tokens']}, `{b['method']}` | {b['stages']['vision']['median']:.2f} | "
            f"{b['ttft']['median']:.2f} | {f'{speed:.1f}' if speed else '–'} |"
        )
    ratios = profile["ratios"]
    speeds = [b["tokens_per_second"] for b in bundles]
    faster = f"{speeds[1] / speeds[0]:.2f}" if all(speeds) else "–"
    yield f"| ratio | {ratios['vision'][1]:.2f} | {ratios['ttft'][1]:.2f} | {faster} |"


def _batch(row: dict[str, Any]) -> str:
    return (
        f"{row['batch']} sequences together, `{row['form']}`: {row['together tok/s']:.0f} tokens/s, against "
        f"{row['one by one tok/s']:.0f} one by one; {row['same tokens']} of {row['tokens']} tokens are the same."
    )


def _commands(steps: list[dict[str, Any]]) -> list[str]:
    return ["", "```sh", *(step["command"] for step in steps), "```"] if steps else []


def _short(error: str) -> str:
    text = " ".join(error.split())
    return text if len(text) <= 200 else f"…{text[-200:]}"
