"""The parts of `gpu_day.py`: each a list of commands that anyone can run by hand, with a limit of time for all of them.

Not a script.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fico_export.devices import targets
from fico_export.errors import unknown_name

ROOT = Path(__file__).parents[1]
KEEP = 64
BATCH = 4
PRECISION = "fp16"
METHOD = "ficoco-v"


@dataclass(frozen=True)
class Day:
    """What is measured: where bundles go, size of the model, the card's compute capability, whether it is a rehearsal."""

    work: Path
    size: str
    capability: str | None
    rehearse: bool

    @property
    def model(self) -> str:
        """As `fico export` takes it."""
        return "demo" if self.size == "demo" else str(self.work / f"llava-{self.size}")


@dataclass(frozen=True)
class Step:
    """A command, and what its output says.

    Attributes:
        read: of standard output, the numbers.
        needed: whether those after it are in vain without it.
    """

    name: str
    command: list[str]
    read: Callable[[str], Any] = json.loads
    needed: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Commands in a row, and their time; or why they are not run."""

    name: str
    limit_s: float
    steps: list[Step] = field(default_factory=list)
    skipped: str | None = None


def tests(day: Day) -> Part:
    """The tests that need a GPU; a rehearsal collects and skips them."""
    files = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    )
    command = ["python", "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    required = {"FICO_REQUIRE_GPU": "" if day.rehearse else "1"}
    return Part("tests", 130, [Step("pytest", command, counts, environment=required)])


def counts(output: str) -> dict[str, int]:
    """Tests by outcome, from pytest's closing line.

    Raises:
        ValueError: there is none.
    """
    found = re.findall(
        r"(\d+) (passed|failed|errors?|skipped|deselected)", output.rpartition("\n=")[2] or output
    )
    if not found:
        raise ValueError("pytest ended without its closing line")
    return {outcome.removesuffix("s"): int(count) for count, outcome in found}


def model(day: Day) -> Part:
    """A checkpoint of random weights: time and memory are those of the real thing."""
    if day.size == "demo":
        return Part("model", 0, skipped="the demo is in the package")
    command = [
        "python",
        "scripts/bench_scale.py",
        "--job",
        "checkpoint",
        "--size",
        day.size,
        "--work",
        str(day.work),
    ]
    return Part("model", 60, [Step("checkpoint", command)])


def ort(day: Day) -> Part:
    """ONNX Runtime, its CUDA provider."""
    steps = [
        *exports(day, "portable", batch=BATCH),
        profile(day, "portable", "ort-cuda"),
        *batches(day, "portable"),
    ]
    return Part("ort", 150, steps)


def rtx(day: Day) -> Part:
    """TensorRT-RTX; it builds with no GPU too."""
    known = targets.get("rtx").compute_capabilities
    missing = _missing("tensorrt_rtx")
    if missing is None and not day.rehearse and day.capability not in known:
        missing = (
            f"the card's compute capability is {day.capability}; TensorRT-RTX builds for {', '.join(known)}"
        )
    if missing:
        return Part("rtx", 0, skipped=missing)
    return Part("rtx", 70, [*exports(day, "rtx"), *builds(day, "rtx"), profile(day, "rtx", "rtx")])


def tensorrt(day: Day) -> Part:
    """Standard TensorRT. Its builder needs a GPU: a rehearsal builds nothing."""
    missing = _missing("tensorrt")
    if missing and not day.rehearse:
        return Part("tensorrt", 0, skipped=missing)
    target = newest_target(None if missing else version("tensorrt"))
    building = [] if day.rehearse else builds(day, target)
    return Part("tensorrt", 70, [*exports(day, target), *building, profile(day, target, "trt")])


PARTS: dict[str, Callable[[Day], Part]] = {
    "tests": tests,
    "model": model,
    "ort": ort,
    "rtx": rtx,
    "tensorrt": tensorrt,
}


def chosen(names: str) -> list[Callable[[Day], Part]]:
    """Parts by their names, comma separated.

    Raises:
        ConfigError: there is no such part.
    """
    for name in (wanted := names.split(",")):
        if name not in PARTS:
            raise unknown_name("part", name, list(PARTS))
    return [make for name, make in PARTS.items() if name in wanted]


def newest_target(installed: str | None) -> str:
    """The target of an installed TensorRT; None for the newest that is known."""
    known = {name: _numbers(name.removeprefix("trt-")) for name in targets.names() if name.startswith("trt-")}
    least = _numbers(installed) if installed else max(known.values())
    return max((name for name in known if known[name] <= least), key=known.__getitem__, default="trt-10.3")


def exports(day: Day, target: str, *, batch: int = 1) -> list[Step]:
    """A bundle with all visual tokens and one with K; not compared with torch, as the runtime is measured."""
    common = [
        "fico",
        "export",
        "--model",
        day.model,
        "--precision",
        PRECISION,
        "--target",
        target,
        "--max-batch",
        str(batch),
        "--no-verify",
        "--json",
    ]
    return [
        Step("export all", [*common, "--out", str(_bundle(day, target, "all"))]),
        Step(
            f"export K={KEEP}",
            [*common, "--keep", str(KEEP), "--method", METHOD, "--out", str(_bundle(day, target, KEEP))],
        ),
    ]


def builds(day: Day, target: str) -> list[Step]:
    """Engines of both."""
    return [
        Step(
            f"build {kept}", ["fico", "build", str(_bundle(day, target, kept)), "--target", target, "--json"]
        )
        for kept in ("all", KEEP)
    ]


def profile(day: Day, target: str, backend: str) -> Step:
    """Vision, first token and tokens a second, both bundles in alternation."""
    few = ["--iterations", "2", "--warm-up", "1", "--new-tokens", "4"]
    many = ["--iterations", "15", "--warm-up", "3", "--new-tokens", "64"]
    bundles = [str(_bundle(day, target, kept)) for kept in ("all", KEEP)]
    backend = "ort-cpu" if day.rehearse else backend
    return Step(
        "profile",
        ["fico", "profile", *bundles, "--backend", backend, *(few if day.rehearse else many), "--json"],
    )


def batches(day: Day, target: str) -> list[Step]:
    """Four sequences decoded together, against one by one, after prompts about as long as with all visual tokens and with K."""
    backend = "ort-cpu" if day.rehearse else "ort-cuda"
    common = ["python", "scripts/bench_batch.py", "--backend", backend, "--repeats", "2", "--json"]
    return [
        Step(
            f"batch of {BATCH}",
            [*common, "--bundle", str(_bundle(day, target, kept)), "--prompt", str(mean * 2 // (BATCH + 1))],
            needed=False,
        )
        for kept, mean in (("all", 600), (KEEP, 100))
    ]


def _bundle(day: Day, target: str, kept: int | str) -> Path:
    return day.work / f"{target}-{kept}"


def _missing(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
