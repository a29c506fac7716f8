#!/usr/bin/env python3
"""Measure what each reducer keeps of the demo's answers: method × K × positions policy × kind of question.

    python scripts/evaluate.py                                # everything, into engines/evaluation and docs/
    python scripts/evaluate.py --methods ficoco-v,random --keep 64 --scenes 50 --out /tmp/evaluation

Every cell is answered by an exported bundle through the runtime, on held-out scenes that training never saw, one question
of each kind a scene. What is done is kept in the output folder; started again, it goes on. Needs `pip install -e .[dev]`.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import cells
import typer
from scipy.stats import binomtest

import fico_export
from fico_export import demo, reducers
from fico_export.bundle import files
from fico_export.demo import scenes
from fico_export.demo.questions import KINDS, Question, one_of_each
from fico_export.errors import ConfigError

KEEP = (192, 128, 64, 32, 16)
POLICIES = ("compact", "original")
ALL = "all 576"
SHOWN = 64  # the budget whose kinds of questions are shown one by one
START, STOP = "<!-- made by scripts/evaluate.py -->", "<!-- end -->"


def main(
    methods: Annotated[
        str, typer.Option(help="Names, comma separated; all by default. All tokens are always measured.")
    ] = "",
    keep: Annotated[str, typer.Option(help="Budgets, comma separated.")] = ",".join(map(str, KEEP)),
    count: Annotated[int, typer.Option("--scenes", help="Held-out scenes.")] = 300,
    model: Annotated[str, typer.Option(help="`demo` or a checkpoint folder trained like it.")] = "demo",
    out: Annotated[Path, typer.Option(help="Bundles, answers, table and plot.")] = Path("engines/evaluation"),
    docs: Annotated[
        Path | None, typer.Option(help="Page whose results are replaced, its plot beside it.")
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(help="Only count what the tests' golden questions get right, and write it there."),
    ] = None,
    policies: Annotated[
        str,
        typer.Option(
            help="Of position ids, comma separated; a method inside the decoder has `original` alone."
        ),
    ] = ",".join(POLICIES),
    processes: Annotated[int, typer.Option(help="Evaluate so many bundles at once.")] = 2,
) -> None:
    """Measure, then write the table and the plot."""
    work = out / _fingerprint(model)
    work.mkdir(parents=True, exist_ok=True)
    if golden:
        _write_golden(golden, model, work)
        return
    chosen = [name for name in (methods.split(",") if methods else reducers.names()) if name != "none"]
    for name in chosen:
        reducers.get(name)
    ways = tuple(policies.split(","))
    jobs = [(model, "none", None, count, ways, work)]
    jobs += [(model, method, int(k), count, ways, work) for method in chosen for k in keep.split(",")]
    results: list[dict[str, Any]] = []
    with cells.bar() as progress, multiprocessing.get_context("spawn").Pool(processes) as pool:
        task = progress.add_task("bundles", total=len(jobs))
        for found in pool.imap(_evaluate, jobs):
            results += found
            progress.advance(task)
    table = "\n".join(_report(results, count))
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "results.md").write_text(table + "\n", encoding="utf-8")
    _plot(results, out / "results")
    print(table)
    if docs:
        page = docs.read_text(encoding="utf-8")
        before, after = page.split(START)[0], page.split(STOP)[1]
        docs.write_text(f"{before}{START}\n\n{table}\n\n{STOP}{after}", encoding="utf-8")
        _plot(results, docs.with_suffix(""))


def _fingerprint(model: str) -> str:
    """Names the weights, so that what was measured on others is not taken for these."""
    folder = demo.FOLDER if model == "demo" else Path(model)
    return "-".join(files.sha256(path)[:8] for path in sorted(folder.glob("*.safetensors")))


def _evaluate(job: tuple[str, str, int | None, int, tuple[str, ...], Path]) -> list[dict[str, Any]]:
    """One bundle under some policies: a record a policy, `right` holding one 0 or 1 a question of each kind."""
    model, method, k, count, policies, out = job
    done = out / f"{method}-{k or 'all'}-{count}.json"
    records: list[dict[str, Any]] = cells.kept(done) or []
    missing = [policy for policy in policies if policy not in {r["policy"] for r in records}]
    if method == "none" and records:
        missing = []
    try:
        records += _answer(_export(model, method, k, out), method, k, count, missing) if missing else []
    except ConfigError as refused:  # a budget that this method cannot have
        print(f"{method} at {k}: {refused}")
    cells.keep(done, records)
    return records


def _answer(
    bundle: Path, method: str, k: int | None, count: int, policies: list[str]
) -> Iterator[dict[str, Any]]:
    vlm = fico_export.load(bundle, threads=1)
    shown = [scenes.scene(i, "held-out") for i in range(count)]
    asked = [one_of_each(scene) for scene in shown]
    drawn: list[Any] = [scenes.render(scene) for scene in shown]
    if not vlm.reads_prompt:  # then a picture is the same to every question about it
        drawn = [vlm.encode_image(picture) for picture in drawn]
    ways: list[tuple[str, list[list[Any]]]]
    if method == "none":  # and what guessing gives: no picture, and that of the scene before
        ways = [
            ("original", [[picture] for picture in drawn]),
            ("no picture", [[] for _ in shown]),
            ("wrong picture", [[drawn[i - 1]] for i in range(count)]),
        ]
    else:
        fixed = vlm.manifest.reduction.in_decoder
        ways = [(p, [[d] for d in drawn]) for p in policies if p == "original" or not fixed]
    for policy, pictures in ways:
        if policy in POLICIES:  # the policy is the manifest's alone: the graphs are the same
            reduction = vlm.manifest.reduction.model_copy(update={"positions": policy})
            vlm.manifest = vlm.manifest.model_copy(update={"reduction": reduction})
        right: dict[str, list[int]] = {kind: [] for kind in KINDS}
        chat = vlm.chat()
        for questions, images in zip(asked, pictures, strict=True):
            for question in questions:
                chat.restart()
                answer = chat.ask(question.text, images, max_new_tokens=8)
                right[question.kind].append(int(_matches(answer.text, question)))
        yield {"method": method, "keep": k, "policy": policy, "right": right}


def _write_golden(path: Path, model: str, out: Path) -> None:
    """64 held-out questions beyond those of the table, and how many the demo answers at `none` and at K = 64."""
    asked = [(i, q) for i in range(100_000, 100_010) for q in one_of_each(scenes.scene(i, "held-out"))][:64]
    right = {}
    for method, k in (("none", None), (reducers.DEFAULT, 64)):
        vlm = fico_export.load(_export(model, method, k, out))
        hits = [
            _matches(
                vlm.generate(q.text, [scenes.render(scenes.scene(i, "held-out"))], max_new_tokens=8).text, q
            )
            for i, q in asked
        ]
        right[method] = sum(hits)
    content = {"right": right, "questions": [{"scene": i, **asdict(q)} for i, q in asked]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"of {len(asked)} right: {right}")


def _export(model: str, method: str, k: int | None, out: Path) -> Path:
    return cells.exported(out / f"{method}-{k or 'all'}", model, k, method)


def _matches(text: str, question: Question) -> bool:
    return text.strip().lower() == question.answer


def _report(results: list[dict[str, Any]], count: int) -> list[str]:
    """Tables in Markdown: accuracy in per cent with the half-width of its interval."""
    asked = {kind: len(results[0]["right"][kind]) for kind in KINDS}
    kept = sorted({r["keep"] for r in results if r["keep"]}, reverse=True)
    methods = list(dict.fromkeys(r["method"] for r in results if r["method"] != "none"))
    lines = [
        f"{count} held-out scenes; questions of each kind: "
        + ", ".join(f"{k} {n}" for k, n in asked.items())
        + ".",
        "Per cent right ± half of the 95 % interval (Wilson; of a mean over kinds, by bootstrap over their questions).",
        "",
    ]
    whole = [
        ("all 576 tokens" if r["policy"] == "original" else r["policy"], r)
        for r in results
        if r["method"] == "none"
    ]
    lines += _by_kind("no reduction", whole)
    for policy in POLICIES[::-1]:
        found = {
            (r["method"], r["keep"]): r for r in results if r["policy"] == policy and r["method"] != "none"
        }
        shown = [m for m in methods if any(m == method for method, _ in found)]
        if not shown:
            continue
        lines += ["", f"Mean over kinds by K, {policy} position ids:", ""]
        lines += ["| method | " + " | ".join(map(str, kept)) + " |", "| --- |" + " --- |" * len(kept)]
        for method in shown:
            means = [_percent(*_overall(found[method, k]), 1) if (method, k) in found else "–" for k in kept]
            lines.append(f"| {method} | " + " | ".join(means) + " |")
    for policy in POLICIES[::-1]:
        rows = [(r["method"], r) for r in results if r["keep"] == SHOWN and r["policy"] == policy]
        if rows:
            lines += ["", f"By kind at K = {SHOWN}, {policy} position ids:", "", *_by_kind("method", rows)]
    return lines


def _by_kind(first: str, rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    lines = [f"| {first} | " + " | ".join(KINDS) + " | mean |", "| --- |" + " --- |" * (len(KINDS) + 1)]
    for name, r in rows:
        cells = [_percent(_mean(r["right"][k]), _half_width(r["right"][k]), 0) for k in KINDS]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {_percent(*_overall(r), 1)} |")
    return lines


def _percent(share: float, half: float, digits: int) -> str:
    return f"{100 * share:.{digits}f} ± {100 * half:.{digits}f}"


def _mean(hits: list[int]) -> float:
    return sum(hits) / len(hits)


def _half_width(hits: list[int]) -> float:
    """Half of Wilson's 95 % score interval."""
    found = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return float(found.high - found.low) / 2


def _overall(record: dict[str, Any]) -> tuple[float, float]:
    """The mean over kinds, and half of its 95 % interval."""
    rng, kinds = random.Random(0), list(record["right"].values())
    means = sorted(
        statistics.fmean(_mean(rng.choices(hits, k=len(hits))) for hits in kinds) for _ in range(500)
    )
    return statistics.fmean(map(_mean, kinds)), (means[487] - means[12]) / 2


def _plot(results: list[dict[str, Any]], path: Path) -> None:
    """Mean accuracy against K, a line a method and a panel a policy, as PNG and SVG."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "fico"  # the same ids in every run
    full = next(r for r in results if r["method"] == "none" and r["policy"] == "original")
    guess = next(r for r in results if r["policy"] == "wrong picture")
    figure, axes = plt.subplots(1, 2, figsize=(11, 6), sharey=True, layout="constrained")
    styles = itertools.product(("-", "--", ":"), (f"C{i}" for i in range(10)))
    style = dict(
        zip(dict.fromkeys(r["method"] for r in results if r["method"] != "none"), styles, strict=False)
    )
    for axis, policy in zip(axes, POLICIES[::-1], strict=True):
        axis.axhline(100 * _overall(full)[0], color="black", linewidth=1, label=ALL)
        axis.axhline(
            100 * _overall(guess)[0], color="grey", linewidth=1, linestyle=":", label="wrong picture"
        )
        for method, (line, colour) in style.items():
            rows = sorted(
                (r for r in results if r["method"] == method and r["policy"] == policy),
                key=lambda r: r["keep"],
            )
            if not rows:
                continue
            means, halves = zip(*(_overall(r) for r in rows), strict=True)
            axis.errorbar(
                [r["keep"] for r in rows], [100 * m for m in means], [100 * h for h in halves],
                linestyle=line, color=colour, marker="o", markersize=4, capsize=2, label=method,
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        ticks = sorted({r["keep"] for r in results if r["keep"]})
        axis.set_xticks(ticks, [str(k) for k in ticks])
        axis.set_xlabel("visual tokens kept, of 576")
        axis.set_title(f"{policy} position ids")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("questions answered right, mean over kinds, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
