"""Train the demo model from scratch and save it as an ordinary LLaVA checkpoint.

    python scripts/train_demo.py --out fico_export/demo/model

Two stages: the vision tower on labels of every patch (`demo_vision.py`), then projector and decoder on questions with the
tower frozen (`demo_language.py`). Every step's scenes come from its number, so a run is repeatable and can be interrupted:
started again with the same `--state`, it goes on where it last saved.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import demo_language
import demo_vision
import torch
import typer
from torch import Tensor, nn


def fit(
    name: str,
    modules: nn.ModuleDict,
    loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    *,
    steps: int,
    muon_lr: float,
    adam_lr: float,
    state: Path,
    save_every: int = 200,
) -> None:
    """Run one stage: Muon on the layers' matrices, AdamW on the rest, warm-up and a cosine to zero.

    Args:
        name: of the stage; its state lies in `<state>/<name>.pt`.
        modules: what is trained.
        loss: of a step's number: the loss and figures to report.
        steps: number of steps of the whole stage.
        muon_lr: highest learning rate of the matrices.
        adam_lr: highest learning rate of everything else.
        state: folder of the states.
        save_every: steps between two states.
    """
    matrices = [
        p for n, p in modules.named_parameters() if p.requires_grad and p.dim() == 2 and ".layers." in n
    ]
    rest = [
        p for n, p in modules.named_parameters() if p.requires_grad and not (p.dim() == 2 and ".layers." in n)
    ]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), muon_lr),
        (torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0), adam_lr),
    ]
    path, first = state / f"{name}.pt", 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        first = saved["step"]
        modules.load_state_dict(saved["modules"])
        for (optimizer, _), values in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        print(f"{name}: going on at step {first} of {steps}", flush=True)
    figures: dict[str, list[float]] = defaultdict(list)
    started = time.perf_counter()
    for step in range(first, steps):
        rate = min(1.0, (step + 1) / (0.02 * steps)) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for optimizer, lr in optimizers:
            optimizer.param_groups[0]["lr"] = lr * rate
            optimizer.zero_grad()
        value, right = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_([*matrices, *rest], 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        for key, figure in {"loss": value.item(), **right}.items():
            if not math.isnan(figure):
                figures[key].append(figure)
        if (step + 1) % 100 == 0:
            pace = (time.perf_counter() - started) / (step + 1 - first)
            report = " ".join(f"{key} {sum(v) / len(v):.3f}" for key, v in figures.items())
            print(
                f"{name} {step + 1}/{steps} {pace:.3f} s/step, {pace * (steps - step - 1) / 60:.0f} min left: {report}",
                flush=True,
            )
            figures.clear()
        if (step + 1) % save_every == 0 or step + 1 == steps:
            content = {
                "step": step + 1,
                "modules": modules.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer, _ in optimizers],
            }
            torch.save(content, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the finished checkpoint.")] = Path(
        "fico_export/demo/model"
    ),
    state: Annotated[Path, typer.Option(help="Folder of the states that a run goes on from.")] = Path(
        "engines/training"
    ),
    seed: Annotated[int, typer.Option(help="Of the weights; scenes come from the steps' numbers.")] = 0,
    vision_steps: Annotated[int, typer.Option(help="Steps of the first stage.")] = 7000,
    language_steps: Annotated[int, typer.Option(help="Steps of the second stage.")] = 3000,
    batch: Annotated[int, typer.Option(help="Scenes a step.")] = 8,
) -> None:
    """Train the demo model."""
    if out.exists() and not (out / "config.json").exists():
        raise typer.BadParameter(
            f"{out} is not a checkpoint: give --out another folder, this one would be replaced"
        )
    state.mkdir(parents=True, exist_ok=True)
    tower = demo_vision.start(width=128, heads=4, layers=6, seed=seed)
    modules = nn.ModuleDict({"tower": tower, "heads": demo_vision.Heads(128)})
    fit(
        "vision",
        modules,
        lambda step: demo_vision.loss(tower, modules["heads"], step, batch),
        steps=vision_steps,
        muon_lr=8e-3,
        adam_lr=2e-3,
        state=state,
    )
    tower.requires_grad_(False).eval()
    demo_language.write_text(state / "tokenizer")
    text = demo_language.Text(state / "tokenizer")
    language = demo_language.Language(192, 3, 4, 384, tower.config, seed + 1)
    with torch.no_grad():
        features = demo_vision.features(tower, demo_vision.batch(0, 64)[0])[:, 1:]
        language.start_from(modules["heads"], features, text)
    seen = vision_steps * batch  # the second stage goes on with scenes that the first has not seen
    fit(
        "language",
        nn.ModuleDict({"language": language}),
        lambda step: demo_language.loss(tower, language, text, step, batch, seen),
        steps=language_steps,
        muon_lr=5e-3,
        adam_lr=2e-3,
        state=state,
    )
    whole = out.with_name(f".{out.name}.partial")
    shutil.rmtree(whole, ignore_errors=True)
    demo_language.write(whole, tower, language)
    shutil.rmtree(out, ignore_errors=True)
    whole.rename(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
