"""`scripts/gpu_day.py`: what fails stops nothing and is recorded, results become a page, wheels arrive whole without a network."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gpu_day
import gpu_docs
import gpu_parts
import gpu_wheels
import pytest

from fico_export.devices import gpu, targets
from fico_export.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def day(monkeypatch, tmp_path):
    """day(*options) → the results of a run."""

    def run(*options):
        out = tmp_path / "day.json"
        monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--out", str(out), *options])
        gpu_day.main()
        return json.loads(out.read_text())

    return run


def plan(tmp_path, *, rehearse=False, capability="8.9", size="1b"):
    return gpu_parts.Day(tmp_path, size, capability, rehearse)


@pytest.mark.slow
def test_a_rehearsal_of_the_tests_collects_them_and_says_what_it_is(day):
    if gpu.count():
        pytest.skip("there is a GPU")
    found = day("--rehearse", "--parts", "tests,model", "--patience", "9")
    tests, model = found["parts"]

    assert found["rehearsal"] is True
    assert found["gpu"] is None
    assert {"python", "onnxruntime-gpu"} <= found["machine"]["versions"].keys()
    (step,) = tests["steps"]
    assert step["outcome"] == "done"
    assert step["numbers"]["skipped"] >= 15
    assert "passed" not in step["numbers"]
    assert step["command"].startswith("python -m pytest -m gpu ")
    assert model["skipped"]


def test_a_part_that_breaks_or_hangs_stops_no_other(day, monkeypatch):
    def part(name, *commands, limit=60):
        steps = [gpu_parts.Step(f"{name} {i}", ["python", "-c", code]) for i, code in enumerate(commands)]
        return lambda _: gpu_parts.Part(name, limit, steps)

    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    parts = {
        "broken": part("broken", "import sys; sys.exit('no card')", "print(1)"),
        "silent": part("silent", "pass"),
        "hanging": part("hanging", child, limit=3),
        "whole": part("whole", "print(1)", "print('{\"ms\": 2}')"),
    }
    monkeypatch.setattr(gpu_parts, "PARTS", parts)
    began = time.monotonic()
    found = {p["part"]: p["steps"] for p in day("--parts", ",".join(parts))["parts"]}

    assert time.monotonic() - began < 500  # what hangs would for 600
    assert [step["outcome"] for step in found["broken"]] == ["failed"]
    assert "no card" in found["broken"][0]["error"]
    assert [step["outcome"] for step in found["silent"]] == ["failed"]
    assert [step["outcome"] for step in found["hanging"]] == ["timed out"]
    assert [step["numbers"] for step in found["whole"]] == [1, {"ms": 2}]


def test_what_no_time_is_left_for_is_recorded(day, monkeypatch):
    step = gpu_parts.Step("late", ["python", "-c", "print(1)"])
    monkeypatch.setattr(gpu_parts, "PARTS", {"late": lambda _: gpu_parts.Part("late", 60, [step])})

    assert day("--parts", "late", "--seconds", "0")["parts"][0]["steps"][0]["outcome"] == "no time left"


def test_all_limits_together_are_eight_minutes(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(gpu_parts, "version", lambda name: "10.16.2")

    parts = [make(plan(tmp_path)) for make in gpu_parts.PARTS.values()]
    assert not any(part.skipped for part in parts)
    assert sum(part.limit_s for part in parts) <= gpu_day.SECONDS == 480


def test_a_card_or_a_library_that_is_not_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts.importlib.util, "find_spec", lambda name: name == "tensorrt_rtx")

    assert "compute capability is 9.0" in gpu_parts.rtx(plan(tmp_path, capability="9.0")).skipped
    assert gpu_parts.rtx(plan(tmp_path)).skipped is None
    assert gpu_parts.tensorrt(plan(tmp_path)).skipped == "tensorrt is not installed"
    rehearsed = gpu_parts.tensorrt(plan(tmp_path, rehearse=True, size="demo")).steps
    assert [step.name for step in rehearsed] == ["export all", "export K=64", "profile"]
    assert "ort-cpu" in rehearsed[-1].command


@pytest.mark.parametrize(
    ("installed", "target"),
    [("10.3.0.26", "trt-10.3"), ("10.14.1", "trt-10.13"), ("10.16.2", "trt-10.16"), ("11.4", "trt-11")],
)
def test_the_target_is_the_newest_that_the_library_takes(installed, target):
    assert gpu_parts.newest_target(installed) == target
    assert gpu_parts.newest_target(None) in targets.names()


def test_an_unknown_part_is_refused(day):
    with pytest.raises(SystemExit, match="unknown part 'rtz'"):
        day("--parts", "rtz")


RESULTS = {
    "rehearsal": False, "created": "2031-02-03T04:05:06+00:00", "revision": "abc1234", "size": "1b", "seconds": 300.0,
    "machine": {"name": "box", "versions": {"onnxruntime-gpu": "1.31.1"}},
    "gpu": {"name": "Some GPU", "compute_capability": "9.0", "driver": "580.1"},
    "parts": [
        {"part": "tests", "skipped": None, "steps": [
            {"step": "pytest", "command": "python -m pytest -m gpu", "outcome": "failed", "error": "exit 1:\n1 failed",
             "numbers": {"failed": 1, "passed": 30}}]},
        {"part": "ort", "skipped": None, "steps": [
            {"step": "profile", "command": "fico profile a b", "outcome": "done", "numbers": {
                "bundles": [
                    {"keep": k, "visual_tokens": 576, "method": m, "stages": {"vision": {"median": v}}, "ttft": {"median": t},
                     "tokens_per_second": s} for k, m, v, t, s in ((576, "none", 8.0, 40.0, 100.0), (64, "ficoco-v", 6.0, 20.0, 125.0))],
                "ratios": {"vision": [1.0, 0.75], "ttft": [1.0, 0.5]}}},
            {"step": "batch of 4", "command": "python scripts/bench_batch.py", "outcome": "failed", "error": "exit 1:", "numbers": [
                {"batch": 4, "form": "portable-64", "together tok/s": 300.4, "one by one tok/s": 100.2, "tokens": 128,
                 "same tokens": 127}]}]},
        {"part": "rtx", "skipped": "tensorrt_rtx is not installed", "steps": []},
    ],
}  # fmt: skip


def test_results_become_the_page(tmp_path):
    (tmp_path / "gpu.md").write_text("# Page\n\n<!-- results -->\nold\n<!-- end of results -->\n\nAfter.\n")
    results = tmp_path / "day.json"
    results.write_text(json.dumps(RESULTS))
    gpu_docs.write(results, tmp_path)
    page = (tmp_path / "gpu.md").read_text()

    assert (
        "Some GPU, compute capability 9.0, driver 580.1; onnxruntime-gpu 1.31.1; 2031-02-03, commit abc1234"
        in page
    )
    assert "| 64 of 576, `ficoco-v` | 6.00 | 20.00 | 125.0 |\n| ratio | 0.75 | 0.50 | 1.25 |" in page
    assert "1 failed, 30 passed." in page
    assert (
        "4 sequences together, `portable-64`: 300 tokens/s, against 100 one by one; 127 of 128 tokens" in page
    )
    assert "### TensorRT-RTX\n\nNot run: tensorrt_rtx is not installed." in page
    assert "fico profile a b\n" in page
    assert page.startswith("# Page\n")
    assert page.endswith("\n\nAfter.\n")
    assert "old" not in page
    assert json.loads((tmp_path / "gpu.json").read_text()) == RESULTS


def test_a_rehearsal_makes_no_page(tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text("<!-- results --><!-- end of results -->")
    results = tmp_path / "day.json"
    results.write_text(json.dumps({**RESULTS, "rehearsal": True}))
    with pytest.raises(ConfigError, match="it is a rehearsal"):
        gpu_docs.write(results, tmp_path)

    assert page.read_text() == "<!-- results --><!-- end of results -->"


def test_the_page_is_what_the_kept_results_give():
    kept = ROOT / "docs" / "gpu.json"
    content = json.loads(kept.read_text()) if kept.exists() else None
    page = (ROOT / "docs" / "gpu.md").read_text()

    assert page == gpu_docs.placed(page, gpu_docs.section(content)), (
        "run python scripts/gpu_day.py --docs docs/gpu.json"
    )
    assert content is None or content["rehearsal"] is False


def wheel(folder, name, size):
    """A small package as a wheel, with `size` bytes that do not compress."""
    base = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": b"from pathlib import Path\nSIZE = len((Path(__file__).parent / 'data').read_bytes())\n",
        f"{name}/data": os.urandom(size),
        f"{base}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{base}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        n: base64.urlsafe_b64encode(hashlib.sha256(c).digest()).rstrip(b"=").decode()
        for n, c in files.items()
    }
    record = "".join(f"{n},sha256={digests[n]},{len(files[n])}\n" for n in files) + f"{base}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for n, content in {**files, f"{base}/RECORD": record.encode()}.items():
            archive.writestr(n, content)


@pytest.mark.slow
def test_wheels_are_listed_split_joined_and_installed_without_a_network(tmp_path):
    wheels, target = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    wheel(wheels, "planted_large", 10_000)
    wheel(wheels, "planted_small", 10)
    wanted = {"planted-large": "1.0", "planted-small": "1.0", "planted-missing": "2.0"}
    listed = gpu_wheels.prepare(wheels, wanted, part_bytes=4096)

    assert "2 of 3 wheels" in listed
    assert "pip download --no-deps --only-binary :all: -d" in listed
    assert listed.endswith("planted-missing==2.0")
    assert all(path.stat().st_size <= 4096 for path in wheels.iterdir())
    assert len(list(wheels.glob("*.part-*"))) == 3
    assert gpu_wheels.prepare(wheels, wanted, part_bytes=4096) == listed

    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "TARGET": str(target),
        "PIP_CONFIG_FILE": os.devnull,
    }
    for _ in range(2):  # a second run finds the parts joined
        subprocess.run([wheels / "install.sh"], env=environment, check=True, capture_output=True, cwd="/")
    code = "import planted_large, planted_small; print(planted_large.SIZE, planted_small.SIZE)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "10000 10\n"


def test_a_part_that_was_damaged_on_the_way_is_not_installed(tmp_path):
    wheel(tmp_path, "planted_large", 10_000)
    gpu_wheels.prepare(tmp_path, {"planted-large": "1.0"}, part_bytes=4096)
    part = sorted(tmp_path.glob("*.part-*"))[1]
    part.write_bytes(bytes(part.stat().st_size))
    environment = {**os.environ, "PYTHON": sys.executable, "TARGET": str(tmp_path / "site")}
    done = subprocess.run(
        [tmp_path / "install.sh"], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode
    assert not (tmp_path / "site").exists()


def test_what_the_machine_has_is_not_carried(tmp_path):
    there = tmp_path / "there.txt"
    there.write_text("numpy==2.0\nTorch==2.11.0+cu130\n")
    everything, rest = gpu_wheels.needed(), gpu_wheels.needed(there)

    assert {
        "fico-export",
        "torch",
        "numpy",
        "onnxruntime-gpu",
        "pytest",
        "tensorrt-rtx-cu13",
    } <= everything.keys()
    assert everything.keys() - rest.keys() == {"numpy", "torch"}
